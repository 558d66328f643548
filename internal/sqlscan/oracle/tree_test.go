package oracle

import (
	"strconv"
	"strings"

	pgquery "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/pgmoor/pgmoor/internal/sqlscan"
)

// A finding is what a parse tree says of a text, in the terms of sqlscan.
type finding struct {
	effects  sqlscan.Effect
	verb     sqlscan.Verb
	count    int
	settings []sqlscan.SettingRef // Literal is set where there is a single value
	scoped   []sqlscan.SettingRef // may be told, too: sqlscan does not know (true) for true, nor which names there are
	all      bool
	unknown  bool // the name of some setting is not a literal
	bodies   bool // there are bodies of functions, which are not looked into

	insert   bool                       // the statement is INSERT
	deferred bool                       // or one that runs later
	drops    map[*pgquery.RangeVar]bool // temporary tables that end with the transaction
}

// find parses a text. It reports false for one that PostgreSQL does not accept.
func find(sql string) (*finding, bool) {
	tree, err := pgquery.Parse(sql)
	if err != nil {
		return nil, false
	}
	f := &finding{count: len(tree.Stmts), drops: map[*pgquery.RangeVar]bool{}}
	for i, raw := range tree.Stmts {
		verb := f.statement(raw.Stmt)
		if i == 0 {
			f.verb = verb
		}
		walk(raw.Stmt.ProtoReflect(), f.node)
	}
	return f, true
}

// walk calls visit for a message and all below it, but for bodies of functions and constants.
func walk(m protoreflect.Message, visit func(proto.Message)) {
	visit(m.Interface())
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.Kind() != protoreflect.MessageKind, fd.Name() == "sql_body":
		case fd.IsList():
			for i := range v.List().Len() {
				walk(v.List().Get(i).Message(), visit)
			}
		default:
			walk(v.Message(), visit)
		}
		return true
	})
}

// kind returns the name of the node's type, as in "create_stmt".
func kind(n *pgquery.Node) string {
	m := n.ProtoReflect()
	return string(m.WhichOneof(m.Descriptor().Oneofs().Get(0)).Name())
}

var creates = map[string]bool{
	"index_stmt": true, "view_stmt": true, "rule_stmt": true, "define_stmt": true, "composite_type_stmt": true,
}

// simple are statements whose kind says all.
var simple = map[string]sqlscan.Effect{
	"listen_stmt":       sqlscan.Listen,
	"unlisten_stmt":     sqlscan.Release,
	"close_portal_stmt": sqlscan.Release,
	"discard_stmt":      sqlscan.Release | sqlscan.Discard,
	"deallocate_stmt":   sqlscan.Release | sqlscan.Deallocate,
	"prepare_stmt":      sqlscan.Prepare,
	"execute_stmt":      sqlscan.Execute,
	"load_stmt":         sqlscan.Load,
	"call_stmt":         sqlscan.Call,
	"do_stmt":           sqlscan.Call | sqlscan.Define,

	"rename_stmt":                sqlscan.Define,
	"import_foreign_schema_stmt": sqlscan.Define,
}

// statement takes what counts only at the top.
func (f *finding) statement(n *pgquery.Node) sqlscan.Verb {
	k := kind(n)
	f.effects |= simple[k]
	if strings.HasPrefix(k, "create") || creates[k] {
		f.effects |= sqlscan.Create
		if !temporary(n) {
			f.effects |= sqlscan.Define
		}
	}
	if strings.HasPrefix(k, "alter") {
		f.effects |= sqlscan.Define
	}
	if strings.HasPrefix(k, "drop") {
		f.effects |= sqlscan.Release
	}
	f.insert = k == "insert_stmt"
	f.deferred = strings.HasPrefix(k, "create") || k == "prepare_stmt"
	switch s := n.Node.(type) {
	case *pgquery.Node_VariableSetStmt:
		f.variable(s.VariableSetStmt)
		return sqlscan.VerbSet
	case *pgquery.Node_DiscardStmt:
		f.all = f.all || s.DiscardStmt.Target == pgquery.DiscardMode_DISCARD_ALL
		return sqlscan.VerbSet
	case *pgquery.Node_ExplainStmt:
		f.explained(s.ExplainStmt.Query)
	case *pgquery.Node_CreateTableAsStmt:
		f.explained(n)
	case *pgquery.Node_DeclareCursorStmt:
		f.effects |= sqlscan.Declare
		if s.DeclareCursorStmt.Options&0x20 != 0 {
			f.effects |= sqlscan.HoldCursor
		}
	case *pgquery.Node_ConstraintsSetStmt:
		return sqlscan.VerbSet
	case *pgquery.Node_TransactionStmt:
		return f.transaction(s.TransactionStmt)
	case *pgquery.Node_InsertStmt:
		if s.InsertStmt.WithClause == nil { // else the statement begins with that
			return sqlscan.VerbInsert
		}
	case *pgquery.Node_MergeStmt:
		if s.MergeStmt.WithClause == nil {
			return sqlscan.VerbInsert
		}
	}
	return sqlscan.VerbOther
}

// temporary reports whether what is created says that it is. That of INTO and of CREATE AS is looked at as such.
func temporary(n *pgquery.Node) bool {
	var made *pgquery.RangeVar
	switch s := n.Node.(type) {
	case *pgquery.Node_CreateStmt:
		made = s.CreateStmt.Relation
	case *pgquery.Node_CreateSeqStmt:
		made = s.CreateSeqStmt.Sequence
	case *pgquery.Node_ViewStmt:
		made = s.ViewStmt.View
	case *pgquery.Node_CreateTableAsStmt:
		return true
	}
	return made.GetRelpersistence() == "t"
}

func (f *finding) explained(n *pgquery.Node) {
	if n.GetExecuteStmt() != nil || n.GetCreateTableAsStmt().GetQuery().GetExecuteStmt() != nil {
		f.effects |= sqlscan.Execute
	}
	if n.GetCreateTableAsStmt() != nil {
		f.effects |= sqlscan.Create
	}
}

var verbs = map[pgquery.TransactionStmtKind]sqlscan.Verb{
	pgquery.TransactionStmtKind_TRANS_STMT_BEGIN:             sqlscan.VerbBegin,
	pgquery.TransactionStmtKind_TRANS_STMT_START:             sqlscan.VerbBegin,
	pgquery.TransactionStmtKind_TRANS_STMT_COMMIT:            sqlscan.VerbCommit,
	pgquery.TransactionStmtKind_TRANS_STMT_ROLLBACK:          sqlscan.VerbRollback,
	pgquery.TransactionStmtKind_TRANS_STMT_SAVEPOINT:         sqlscan.VerbSavepoint,
	pgquery.TransactionStmtKind_TRANS_STMT_RELEASE:           sqlscan.VerbRelease,
	pgquery.TransactionStmtKind_TRANS_STMT_ROLLBACK_TO:       sqlscan.VerbRollbackTo,
	pgquery.TransactionStmtKind_TRANS_STMT_PREPARE:           sqlscan.VerbPrepareTransaction,
	pgquery.TransactionStmtKind_TRANS_STMT_COMMIT_PREPARED:   sqlscan.VerbCommitPrepared,
	pgquery.TransactionStmtKind_TRANS_STMT_ROLLBACK_PREPARED: sqlscan.VerbRollbackPrepared,
}

func (f *finding) transaction(s *pgquery.TransactionStmt) sqlscan.Verb {
	verb := verbs[s.Kind]
	switch verb {
	case sqlscan.VerbBegin:
		f.effects |= sqlscan.TxnBegin
	case sqlscan.VerbSavepoint, sqlscan.VerbRelease, sqlscan.VerbRollbackTo:
	default:
		f.effects |= sqlscan.TxnEnd
	}
	if verb == sqlscan.VerbCommitPrepared {
		f.effects |= sqlscan.Define
	}
	if s.Chain {
		f.effects |= sqlscan.TxnBegin
	}
	return verb
}

func (f *finding) variable(s *pgquery.VariableSetStmt) {
	name := folded(s.Name)
	if name == "seed" && s.Kind == pgquery.VariableSetKind_VAR_SET_VALUE {
		f.effects |= sqlscan.Seed
	}
	if name == "local" || name == "transaction" || name == "constraints" { // which there is none of
		f.scoped = append(f.scoped, sqlscan.SettingRef{Name: name}, sqlscan.SettingRef{Name: name, Reset: true})
		return
	}
	if s.IsLocal || s.Kind == pgquery.VariableSetKind_VAR_SET_MULTI && s.Name != "SESSION CHARACTERISTICS" {
		return
	}
	f.effects |= sqlscan.Setting
	switch s.Kind {
	case pgquery.VariableSetKind_VAR_RESET_ALL:
		f.all = true
	case pgquery.VariableSetKind_VAR_SET_MULTI:
		for _, a := range s.Args {
			f.add(sqlscan.SettingRef{Name: "default_" + a.GetDefElem().Defname})
		}
	case pgquery.VariableSetKind_VAR_SET_DEFAULT, pgquery.VariableSetKind_VAR_RESET:
		f.add(sqlscan.SettingRef{Name: name, Reset: true})
	default:
		r := sqlscan.SettingRef{Name: name}
		if len(s.Args) == 1 {
			r.Value, r.Literal = constant(s.Args[0])
		}
		if name == "xmloption" && r.Value != "" { // a keyword, which the grammar makes a constant in upper case
			r.Value = strings.ToLower(r.Value)
		}
		f.add(r)
	}
}

func (f *finding) add(r sqlscan.SettingRef) {
	f.settings = append(f.settings, withRole(r)...)
}

// withRole returns what a change of the setting changes.
func withRole(r sqlscan.SettingRef) []sqlscan.SettingRef {
	if r.Name == "session_authorization" {
		return []sqlscan.SettingRef{r, {Name: "role", Reset: true}}
	}
	return []sqlscan.SettingRef{r}
}

// folded returns a name as PostgreSQL compares it, or the one that it stands for.
func folded(name string) string {
	name = strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, name)
	if name == "sort_mem" {
		return "work_mem"
	}
	return name
}

func constant(n *pgquery.Node) (string, bool) {
	switch v := n.GetAConst().GetVal().(type) {
	case *pgquery.A_Const_Sval:
		return v.Sval.Sval, true
	case *pgquery.A_Const_Ival:
		return strconv.Itoa(int(v.Ival.Ival)), true
	}
	return "", false
}

// node takes what counts wherever it stands.
func (f *finding) node(m proto.Message) {
	switch s := m.(type) {
	case *pgquery.FuncCall:
		f.call(s)
	case *pgquery.CreateFunctionStmt:
		f.qualified(s.Funcname)
		f.bodies = f.bodies || s.SqlBody != nil
	case *pgquery.TypeName:
		f.qualified(s.Names)
	case *pgquery.AlterObjectSchemaStmt:
		f.schema(s.Newschema)
	case *pgquery.CreateStmt:
		f.drops[s.Relation] = s.Oncommit == pgquery.OnCommitAction_ONCOMMIT_DROP
	case *pgquery.IntoClause:
		if !f.insert { // where it is an error, but not one of syntax
			f.effects |= sqlscan.Create
			if s.Rel.Relpersistence != "t" {
				f.effects |= sqlscan.Define
			}
		}
		f.drops[s.Rel] = f.insert || s.OnCommit == pgquery.OnCommitAction_ONCOMMIT_DROP
	case *pgquery.UpdateStmt:
		if s.Relation.Relname == "pg_settings" {
			f.effects |= sqlscan.Setting
			f.unknown = true
		}
	case *pgquery.RangeVar:
		f.relation(s)
	}
}

func (f *finding) relation(s *pgquery.RangeVar) {
	if s.Relpersistence == "t" && !f.drops[s] {
		f.effects |= sqlscan.TempObject
	}
	f.schema(s.Schemaname)
	switch s.Relname {
	case "pg_prepared_statements", "pg_cursors":
		f.effects |= sqlscan.PrepView
	case "pg_stat_activity", "pg_locks", "pg_stat_replication", "pg_stat_ssl":
		f.effects |= sqlscan.Pid
	}
}

// qualified takes a name, of which what stands in front may be a schema.
func (f *finding) qualified(names []*pgquery.Node) {
	for _, n := range names[:max(len(names)-1, 0)] {
		f.schema(n.GetString_().GetSval())
	}
}

func (f *finding) schema(name string) {
	if name == "pg_temp" || strings.HasPrefix(name, "pg_temp_") {
		f.effects |= sqlscan.TempObject
	}
}

var functions = map[string]sqlscan.Effect{
	"set_limit":                            sqlscan.Setting,
	"pg_advisory_lock":                     sqlscan.AdvisoryLock,
	"pg_advisory_lock_shared":              sqlscan.AdvisoryLock,
	"pg_try_advisory_lock":                 sqlscan.TryLock,
	"pg_try_advisory_lock_shared":          sqlscan.TryLock,
	"pg_advisory_unlock":                   sqlscan.Release,
	"pg_advisory_unlock_shared":            sqlscan.Release,
	"pg_advisory_unlock_all":               sqlscan.Release,
	"setseed":                              sqlscan.Seed,
	"nextval":                              sqlscan.Sequence,
	"setval":                               sqlscan.Sequence,
	"currval":                              sqlscan.LastValue,
	"lastval":                              sqlscan.LastValue,
	"dblink_connect":                       sqlscan.Foreign,
	"pg_backup_start":                      sqlscan.Foreign,
	"pg_prepared_statement":                sqlscan.PrepView,
	"pg_cursor":                            sqlscan.PrepView,
	"pg_terminate_backend":                 sqlscan.Pid,
	"pg_cancel_backend":                    sqlscan.Pid,
	"pg_blocking_pids":                     sqlscan.Pid,
	"pg_safe_snapshot_blocking_pids":       sqlscan.Pid,
	"pg_isolation_test_session_is_blocked": sqlscan.Pid,
	"pg_log_backend_memory_contexts":       sqlscan.Pid,
	"pg_stat_get_activity":                 sqlscan.Pid,
}

func (f *finding) call(c *pgquery.FuncCall) {
	f.qualified(c.Funcname)
	name := c.Funcname[len(c.Funcname)-1].GetString_().GetSval()
	f.effects |= functions[name]
	switch name {
	case "set_limit":
		f.add(sqlscan.SettingRef{Name: "pg_trgm.similarity_threshold"})
	case "set_config":
		f.setConfig(c.Args)
	}
}

func (f *finding) setConfig(args []*pgquery.Node) {
	if len(args) != 3 { // which there is none of
		return
	}
	r, known := configName(args[0])
	if strings.EqualFold(r.Name, "seed") {
		f.effects |= sqlscan.Seed
	}
	r.Name = folded(r.Name)
	if args[2].GetAConst().GetBoolval().GetBoolval() {
		f.scoped = append(f.scoped, withRole(r)...)
		return
	}
	f.effects |= sqlscan.Setting
	if known = known && (r.Param == 0 || !f.deferred); known {
		f.add(r)
	}
	f.unknown = f.unknown || !known
}

func configName(n *pgquery.Node) (r sqlscan.SettingRef, known bool) {
	if c := n.GetTypeCast(); c != nil {
		types := c.TypeName.Names
		if t := types[len(types)-1].GetString_().GetSval(); (t == "text" || t == "varchar") && len(c.TypeName.Typmods) == 0 {
			n = c.Arg
		}
	}
	if p := n.GetParamRef(); p != nil {
		return sqlscan.SettingRef{Param: int(p.Number)}, p.Number > 0
	}
	s, ok := n.GetAConst().GetVal().(*pgquery.A_Const_Sval)
	if !ok {
		return r, false
	}
	return sqlscan.SettingRef{Name: s.Sval.Sval}, s.Sval.Sval != ""
}
