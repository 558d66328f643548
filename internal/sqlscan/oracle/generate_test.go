package oracle

import (
	"math/rand/v2"
	"strings"
)

// A generator makes texts from the grammar, most of which PostgreSQL accepts, with blanks, comments and letters of either
// case as it likes, and some with a mistake.
type generator struct{ r *rand.Rand }

func newGenerator(seed uint64) *generator {
	return &generator{rand.New(rand.NewPCG(seed, 0))}
}

func (g *generator) chance(percent int) bool { return g.r.IntN(100) < percent }

func (g *generator) pick(list []string) string { return list[g.r.IntN(len(list))] }

// text makes a text of one to four statements.
func (g *generator) text() string {
	words := g.expand(nil, "stmt", 0)
	for g.chance(30) {
		words = append(words, ";")
		if g.chance(90) {
			words = g.expand(words, "stmt", 0)
		}
	}
	for g.chance(15) {
		words = g.spoil(words)
	}
	return g.render(words)
}

// maxDepth is how deep a production is expanded; then the first alternative is taken, which is a short one.
const maxDepth = 6

// expand appends what a symbol of the grammar may stand for.
func (g *generator) expand(words []string, symbol string, depth int) []string {
	alternatives := grammar[symbol]
	chosen := alternatives[0]
	if depth < maxDepth {
		chosen = g.pick(alternatives)
	}
	for _, w := range strings.Fields(chosen) {
		if name, ok := strings.CutPrefix(w, "<"); ok && len(name) > 1 && strings.HasSuffix(name, ">") {
			words = g.expand(words, strings.TrimSuffix(name, ">"), depth+1)
		} else {
			words = append(words, strings.ReplaceAll(w, "␣", " "))
		}
	}
	return words
}

// spoil makes a small mistake.
func (g *generator) spoil(words []string) []string {
	if len(words) < 2 {
		return words
	}
	i, j := g.r.IntN(len(words)), g.r.IntN(len(words))
	switch g.r.IntN(4) {
	case 0:
		return append(words[:i:i], words[i+1:]...)
	case 1:
		words[i], words[j] = words[j], words[i]
	case 2:
		words[i] = g.pick(strays)
	default:
		return append(words[:i:i], append([]string{g.pick(strays)}, words[i:]...)...)
	}
	return words
}

// strays are words that mean something to the scanner somewhere.
var strays = strings.Fields(`SET LOCAL SESSION TRANSACTION TEMP TEMPORARY TABLE ON COMMIT DROP AS BEGIN ATOMIC END CASE ;
	INTO INSERT UPDATE WITH HOLD FOR EXECUTE PREPARE PREPARED TO CHAIN NO AND true ( ) , . 'x' "x" set_config pg_temp
	DISCARD RESET ALL LISTEN CREATE OR REPLACE FUNCTION PROCEDURE :: = $1 1 UESCAPE seed`)

func (g *generator) render(words []string) string {
	var b strings.Builder
	for i, w := range words {
		if i > 0 && (!touches(words[i-1], w) || !g.chance(50)) {
			b.WriteString(g.blank())
		}
		if isWord(w) && g.chance(40) {
			w = strings.ToLower(w)
		}
		b.WriteString(w)
	}
	if g.chance(10) {
		b.WriteString(g.blank())
	}
	return b.String()
}

// touches reports whether two tokens need nothing between them.
func touches(a, b string) bool {
	const alone = "(),;[]"
	return strings.Contains(alone, a) || strings.Contains(alone, b) || a == "." || b == "."
}

func isWord(w string) bool { return strings.Trim(w, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") == "" }

func (g *generator) blank() string {
	if g.chance(80) {
		return " "
	}
	return g.pick([]string{
		"\n", "\t ", "/**/", " /* ; ' $$ \" -- */", "/*/*/**/*/ SET x = 1; */", " -- ; '\n", "--\r", " --/*\n", "\f", "/* ( */ ",
	})
}

// grammar says what each symbol may stand for; ␣ is a blank within a token.
var grammar = map[string][]string{
	"stmt": {
		"SELECT 1", "<select>", "<select>", "<select>", "<dml>", "<dml>", "<setting>", "<setting>", "<setting>", "<setting>", "<txn>",
		"<create>", "<create>", "<create>", "<temp>", "<temp>", "<routine>", "<routine>", "<session>", "<session>", "<cursor>",
		"<prepared>", "<explain>", "<utility>",
	},

	"select": {
		"SELECT <expr>", "SELECT <targets> <from>", "SELECT <targets> <into> <from>", "( <select> )", "WITH a AS ( <query> ) <select>",
		"<select> UNION ALL <query>", "SELECT DISTINCT <targets> FROM <call>", "TABLE <qname>", "VALUES ( <expr> , <expr> )",
		"SELECT <targets> <from> ORDER BY <expr> LIMIT 1 FOR UPDATE", "WITH a AS ( <dmlret> ) SELECT 1",
	},
	"query":   {"SELECT 1", "SELECT <targets> <from>", "VALUES ( <expr> )", "TABLE <qname>", "( <query> )"},
	"targets": {"<expr>", "<expr> , <targets>", "<expr> AS <label>", "<expr> <bare>", "*", "<expr> AS <name> , <expr>"},
	"label":   {"x", "<name>", "end", "case", "into", "set", "temp", "as", "begin", "atomic", "commit", "true"},
	"bare":    {"x", "end", "case", "temp", "begin", "atomic", "commit", "drop", "set", "execute", "listen", "insert"},
	"from":    {"", "FROM <qname>", "FROM <qname> AS a , <qname> b", "FROM <qname> JOIN <qname> ON <expr> WHERE <expr>", "FROM ( <query> ) AS <name>", "FROM ROWS FROM ( <call> , <call> )", "FROM LATERAL <call>"},
	"into":    {"INTO <qname>", "INTO TABLE <qname>", "INTO TEMP <qname>", "INTO TEMPORARY TABLE <qname>", "INTO LOCAL TEMP <qname>", "INTO UNLOGGED <qname>", "INTO temp", "INTO TABLE temp"},

	"expr": {
		"1", "<string>", "<number>", "<param>", "<name>", "<name> . <label>", "<call>", "<call>", "<call>", "( <expr> )", "<expr> + <expr>",
		"<expr> = <expr> AND <expr>", "<expr> :: text", "CAST ( <expr> AS <type> )", "CASE WHEN <expr> THEN <expr> ELSE <expr> END",
		"CASE <expr> WHEN 1 THEN 2 END", "( <query> )", "EXISTS ( <query> )", "ARRAY [ <expr> , true ]", "ARRAY ( <query> )", "- <expr>",
		"true", "NULL", "NOT <expr>", "<expr> COLLATE \"C\"", "<expr> IS NOT NULL", "ROW ( <expr> , <expr> )", "( <expr> ) [ 1 ]",
		"current_setting ( <string> )", "<expr> @> <expr>", "<expr> BETWEEN 1 AND <expr>", "INTERVAL <string>", "N<plain>", "<config>",
	},
	"args": {"", "<expr>", "<expr> , <expr>", "<expr> , <expr> , true", "<name> => <expr>", "VARIADIC <expr>", "DISTINCT <expr>"},
	"call": {"<function> ( <args> )", "<function> ( <args> )", "pg_catalog . <function> ( <args> )", "<config>", "count ( * ) FILTER ( WHERE <expr> )", "<function> ( <args> ) OVER ( PARTITION BY <expr> )", "public . <function> ( )"},
	"function": {
		"f", "pg_advisory_lock", "pg_advisory_lock_shared", "PG_TRY_ADVISORY_LOCK", "\"pg_try_advisory_lock_shared\"", "pg_advisory_unlock",
		"pg_advisory_unlock_shared", "\"pg_advisory_unlock_all\"", "pg_advisory_xact_lock", "setseed", "nextval", "setval", "currval",
		"LastVal", "dblink_connect", "pg_backup_start", "pg_prepared_statement", "pg_cursor", "pg_terminate_backend", "pg_cancel_backend",
		"pg_blocking_pids", "pg_stat_get_activity", "set_limit", "\"Set_Config\"", "lower", "pg_temp . f", "U&\"setval\"", "\"set_limit\"",
	},
	"config": {
		"set_config ( <cfgname> , <expr> , <cfglocal> )", "pg_catalog . set_config ( <cfgname> , <string> , <cfglocal> )",
		"\"set_config\" ( <cfgname> , <expr> , <cfglocal> )", "Set_Config ( <args> )", "set_config ( <cfgname> , <call> , <cfglocal> )",
	},
	"cfgname":  {"'a.b'", "'App.X'", "'work_mem'", "$1", "$2 :: text", "'seed'", "'Seed'", "$$seed$$", "'session_authorization'", "E'a.b'", "E'\\x61'", "'a'\n'b'", "<expr>", "'x' || 'y'", "'a''b'", "U&'seed'", "'a' :: varchar", "'ab' :: char ( 1 )", "'sort'"},
	"cfglocal": {"true", "false", "TRUE", "true", "$3", "<expr>", "true AND false", "'true'", "( true )"},

	"string": {"'x'", "<plain>", "E'a\\'; SET x = 1; --'", "e'\\\\'", "U&'\\0041'", "B'01'", "X'1F'", "$$; SET x = 1; '$$", "$a$ $$ $b$ ; LISTEN x; $a$", "'x'\n'; SET a = 1; '", "'a' --␣'\n\t'b'", "E'x'\n'\\''"},
	"plain":  {"'x'", "''", "'it''s'", "'; LISTEN x'", "'\\'", "'--'", "'/*'", "'\"'", "'$$'", "'UTC'", "'Ab c'", "'é'"},
	"number": {"1", "0", "42", "1.5", ".5", "5.", "1e10", "1.5E-3", "0x1F", "1_000", "0b10", "007", "2147483648"},
	"param":  {"$1", "$2", "$12"},
	"type":   {"text", "int", "varchar ( 3 )", "pg_catalog . text", "pg_temp . t", "timestamp with time zone", "begin", "x [ ]"},

	"name": {
		"a", "b", "\"Q\"", "\"a\"\"b\"", "\"x;y\"", "\"--\"", "\"/*\"", "\"'\"", "\"$$\"", "U&\"u\"", "é", "begin", "atomic", "temp", "commit", "drop",
		"local", "session", "zone", "names", "role", "schema", "xml", "option", "transaction", "constraints", "characteristics", "seed",
		"\"seed\"", "set", "reset", "listen", "execute", "prepare", "hold", "update", "insert", "replace", "procedure", "function", "a$b", "_x1", "prepared",
		"\"SET\"", "\"select\"", "set_config", "u", "e", "n", "x", "time",
	},
	"qname": {"t", "<name>", "<name>", "s . <name>", "pg_temp . <name>", "\"pg_temp\" . t", "pg_temp_3 . t", "\"PG_TEMP\" . t", "pg_stat_activity", "pg_catalog . pg_locks", "pg_cursors", "\"pg_prepared_statements\"", "pg_settings", "temp", "s . temp"},

	"dml": {
		"INSERT INTO <qname> VALUES ( <expr> )", "INSERT INTO <qname> AS a ( x ) <query> ON CONFLICT ( x ) DO UPDATE SET x = <expr> RETURNING <expr>",
		"WITH a AS ( <query> ) INSERT INTO <qname> <query>", "<dmlret>", "DELETE FROM ONLY <qname> WHERE <expr>",
		"UPDATE <qname> SET <name> = <expr> FROM <qname> WHERE <expr>", "UPDATE ONLY pg_settings SET setting = <expr> WHERE <expr>",
		"MERGE INTO <qname> USING t ON <expr> WHEN MATCHED THEN DELETE", "UPDATE pg_catalog . pg_settings AS s SET setting = <expr>",
		"WITH a AS ( <dmlret> ) MERGE INTO temp USING a ON true WHEN NOT MATCHED THEN INSERT VALUES ( 1 )",
	},
	"dmlret": {"INSERT INTO t VALUES ( 1 ) RETURNING <expr>", "UPDATE <qname> SET x = <expr> RETURNING *", "DELETE FROM <qname> RETURNING <expr>"},

	"setting": {
		"SET <scope> <varname> <eq> <values>", "SET <scope> <varname> <eq> <values>", "SET <scope> <varname> <eq> DEFAULT", "SET <scope> <varname> FROM CURRENT",
		"SET <scope> TIME ZONE <zone>", "SET <scope> NAMES <encoding>", "SET <scope> SCHEMA <plain>", "SET <scope> ROLE <value>",
		"SET <scope> SESSION AUTHORIZATION <value>", "SET <scope> SESSION AUTHORIZATION DEFAULT", "SET <scope> XML OPTION CONTENT",
		"SET <scope> SESSION CHARACTERISTICS AS TRANSACTION <modes>", "SET <scope> TRANSACTION <modes>", "SET <scope> TRANSACTION SNAPSHOT <plain>",
		"SET CONSTRAINTS ALL DEFERRED", "SET CONSTRAINTS <qname> , <qname> IMMEDIATE", "RESET <varname>", "RESET ALL", "RESET TIME ZONE",
		"RESET TRANSACTION ISOLATION LEVEL", "RESET SESSION AUTHORIZATION", "RESET ROLE", "SELECT <config>", "SELECT <config> , <config>",
		"SELECT * FROM <config>", "SET <scope> seed TO <value>", "SET <scope> \"Seed\" = .5", "DISCARD ALL", "DISCARD TEMP",
	},
	"scope":    {"", "", "SESSION", "LOCAL"},
	"varname":  {"work_mem", "<name>", "<name> . <name>", "App . Tenant", "\"App\" . \"X\"\"y\"", "Search_Path", "a . b . c", "role", "session_authorization", "local . x", "session . <name>", "transaction . x", "time . x", "pgmoor . pin", "TimeZone", "seed"},
	"eq":       {"=", "TO"},
	"value":    {"a", "'x'", "<plain>", "on", "TRUE", "off", "\"Quoted\"\"x\"", "none", "Abc", "default_x", "begin"},
	"values":   {"<value>", "<value>", "<number>", "- <number>", "<value> , <values>", "'a' , 'b'", "E'x\\ty'", "$$x$$", "U&'x'", "+ 1"},
	"zone":     {"'UTC'", "utc", "LOCAL", "DEFAULT", "- 7", "1.5", "INTERVAL '1' HOUR TO MINUTE", "INTERVAL ( 3 ) '1'", "\"Utc\""},
	"encoding": {"'utf8'", "DEFAULT", ""},
	"modes":    {"READ ONLY", "READ WRITE", "ISOLATION LEVEL READ COMMITTED", "ISOLATION LEVEL SERIALIZABLE", "NOT DEFERRABLE", "DEFERRABLE", "<modes> , <modes>", "<modes> <modes>"},

	"txn": {
		"BEGIN", "BEGIN WORK <modes>", "START TRANSACTION <modes>", "COMMIT", "COMMIT WORK <chain>", "END", "END TRANSACTION <chain>", "ROLLBACK",
		"ROLLBACK TRANSACTION <chain>", "ABORT <chain>", "SAVEPOINT <name>", "RELEASE SAVEPOINT <name>", "RELEASE <name>", "ROLLBACK TO <name>",
		"ROLLBACK WORK TO SAVEPOINT <name>", "PREPARE TRANSACTION <plain>", "COMMIT PREPARED <plain>", "ROLLBACK PREPARED <plain>",
	},
	"chain": {"", "AND CHAIN", "AND NO CHAIN"},

	"create": {
		"CREATE TABLE <qname> ( a int )", "CREATE UNLOGGED TABLE IF NOT EXISTS <qname> ( <columns> ) <storage>", "CREATE TABLE <qname> AS <query>",
		"CREATE TABLE temp ( temp int , temporary text )", "CREATE TABLE <qname> AS EXECUTE <name> ( <expr> )", "CREATE VIEW <qname> AS <query>",
		"CREATE OR REPLACE RECURSIVE VIEW v ( a ) AS <query>", "CREATE MATERIALIZED VIEW <qname> AS <query> WITH NO DATA", "CREATE SEQUENCE <qname> START 1",
		"CREATE INDEX CONCURRENTLY i ON <qname> ( ( <expr> ) )", "CREATE SCHEMA <name> CREATE TABLE t ( <columns> ) CREATE VIEW v AS <query>",
		"CREATE RULE r AS ON UPDATE TO <qname> WHERE <expr> DO ALSO ( <dmlret> ; <query> ; NOTIFY a )", "CREATE RULE <name> AS ON INSERT TO t DO INSTEAD NOTHING",
		"CREATE TRIGGER <name> BEFORE INSERT ON <qname> FOR EACH ROW WHEN ( <expr> ) EXECUTE FUNCTION f ( 'a' , 1 )", "CREATE TYPE <qname> AS ENUM ( 'a' )",
		"CREATE DOMAIN <qname> AS int CHECK ( <expr> )", "CREATE ROLE <name> LOGIN PASSWORD <plain>", "CREATE EXTENSION <name>", "CREATE DATABASE <name>",
		"CREATE OPERATOR @@ ( LEFTARG = int , FUNCTION = f )", "CREATE CAST ( int AS text ) WITH FUNCTION f ( int ) AS ASSIGNMENT", "CREATE AGGREGATE <qname> ( int ) ( SFUNC = f , STYPE = int )",
		"CREATE OPERATOR CLASS c DEFAULT FOR TYPE int USING btree AS FUNCTION 1 f ( int , int )", "CREATE PUBLICATION <name> FOR ALL TABLES", "CREATE POLICY p ON t USING ( <expr> )",
		"CREATE SCHEMA <name> CREATE TEMP TABLE t ( ) ON COMMIT DROP", "CREATE EVENT TRIGGER <name> ON ddl_command_end EXECUTE PROCEDURE f ( )", "CREATE STATISTICS <qname> ON a , b FROM t",
	},
	"columns": {"a int", "<name> int DEFAULT <expr>", "a int REFERENCES u ON DELETE SET NULL", "a text COLLATE \"C\" , b int CHECK ( <expr> )", "LIKE t", "a int GENERATED ALWAYS AS ( <expr> ) STORED", "commit int , drop int"},
	"storage": {"", "WITH ( fillfactor = 10 )", "USING heap", "INHERITS ( t )", "PARTITION BY RANGE ( a )", "WITHOUT OIDS", "USING heap WITH ( fillfactor = 1e1 )"},

	"temp": {
		"CREATE <temporary> TABLE <ine> <qname> ( <columns> ) <storage> <oncommit>", "CREATE <temporary> TABLE <ine> <qname> <storage> <oncommit> AS <query>",
		"CREATE <temporary> TABLE <qname> ( a , b ) <oncommit> TABLESPACE <name> AS <query> WITH DATA", "CREATE <temporary> TABLE <qname> <oncommit> AS EXECUTE <name>",
		"CREATE <temporary> VIEW <qname> AS <query>", "CREATE OR REPLACE <temporary> VIEW <qname> ( a ) AS <query>", "CREATE <temporary> RECURSIVE VIEW v ( a ) AS <query>",
		"CREATE <temporary> SEQUENCE <ine> <qname>", "CREATE <temporary> TABLE <qname> PARTITION OF t FOR VALUES IN ( 1 ) <oncommit>", "CREATE <temporary> TABLE <qname> OF <type> <oncommit>",
		"CREATE TABLE pg_temp . t ( <columns> )", "ALTER TABLE <qname> SET SCHEMA pg_temp", "<select>",
	},
	"temporary": {"TEMP", "TEMPORARY", "LOCAL TEMP", "GLOBAL TEMPORARY"},
	"ine":       {"", "IF NOT EXISTS"},
	"oncommit":  {"", "ON COMMIT DROP", "ON COMMIT DROP", "ON COMMIT DELETE ROWS", "ON COMMIT PRESERVE ROWS"},

	"routine": {
		"CREATE FUNCTION <qname> ( ) RETURNS int LANGUAGE sql AS <string>", "CREATE OR REPLACE FUNCTION <qname> ( <params> ) RETURNS <type> <fopts> RETURN <expr>",
		"CREATE <orreplace> FUNCTION <qname> ( <params> ) RETURNS <type> <fopts> BEGIN ATOMIC <body> END", "CREATE <orreplace> PROCEDURE <qname> ( <params> ) <fopts> BEGIN ATOMIC <body> END",
		"CREATE <orreplace> PROCEDURE <qname> ( ) BEGIN ATOMIC <body> END ; <stmt>", "CREATE FUNCTION <qname> ( ) RETURNS TABLE ( a int ) BEGIN ATOMIC <body> END ; <stmt> ; <stmt>",
		"CREATE FUNCTION begin ( ) RETURNS begin AS 'x' LANGUAGE atomic ; <stmt>", "CREATE FUNCTION f ( ) RETURNS int SET <varname> <eq> <value> AS 'x' ; <stmt>",
	},
	"orreplace": {"", "OR REPLACE"},
	"params":    {"", "int", "<name> int", "IN a int DEFAULT <expr>", "a int , OUT b <type>", "VARIADIC a int [ ]"},
	"fopts":     {"", "LANGUAGE sql", "IMMUTABLE STRICT", "SET <varname> <eq> <value>", "LANGUAGE atomic", "SUPPORT begin", "PARALLEL safe", "LANGUAGE begin"},
	"body":      {"", "<bodystmt> ;", "<bodystmt> ; <body>", "; <body>"},
	"bodystmt":  {"SELECT 1", "<select>", "<dml>", "RETURN <expr>", "SELECT 1 end", "SELECT 1 case", "SELECT a . end , 1 AS case", "SELECT CASE WHEN <expr> THEN 1 END", "SELECT begin atomic", "SET x = 1", "LISTEN a", "TABLE a", "INSERT INTO t SELECT CASE a WHEN 1 THEN <expr> END END"},

	"session": {
		"LISTEN <name>", "UNLISTEN *", "UNLISTEN <name>", "NOTIFY <name> , 'listen'", "LOAD <plain>", "DISCARD PLANS", "DISCARD SEQUENCES", "DISCARD TEMPORARY",
		"DO <string>", "DO LANGUAGE plpgsql $x$ BEGIN SET x = 1; COMMIT; END $x$", "CALL <qname> ( <args> )", "DROP TABLE IF EXISTS <qname> , <qname> CASCADE",
		"DROP VIEW <qname>", "DROP FUNCTION f ( int )", "DROP OWNED BY <name>", "DROP DATABASE <name>", "DROP ROLE <name>", "DROP RULE r ON <qname>",
		"SELECT <call>", "SELECT * FROM <call> WHERE <call> = 1", "DROP INDEX CONCURRENTLY <qname>", "DROP SCHEMA <name>", "DROP USER MAPPING FOR a SERVER b", "DROP SUBSCRIPTION <name>",
	},
	"cursor": {
		"DECLARE <name> <copts> CURSOR <hold> FOR <query>", "DECLARE <name> CURSOR <hold> FOR <select>", "DECLARE c CURSOR FOR WITH hold AS ( <query> ) SELECT * FROM hold",
		"CLOSE <name>", "CLOSE ALL", "FETCH ALL FROM <name>", "MOVE FORWARD 1 IN <name>",
	},
	"copts": {"", "BINARY", "NO SCROLL", "INSENSITIVE SCROLL", "ASENSITIVE"},
	"hold":  {"", "WITH HOLD", "WITHOUT HOLD", "WITH HOLD"},
	"prepared": {
		"PREPARE <name> AS <query>", "PREPARE <name> ( int , text ) AS <select>", "PREPARE transaction AS <dmlret>", "PREPARE <name> AS SELECT <config>", "EXECUTE <name>",
		"EXECUTE <name> ( <expr> , <expr> )", "DEALLOCATE <name>", "DEALLOCATE PREPARE <name>", "DEALLOCATE ALL", "PREPARE transaction ( int ) AS <query>",
	},
	"explain":   {"EXPLAIN <explained>", "EXPLAIN ANALYZE VERBOSE <explained>", "EXPLAIN ( ANALYZE , COSTS off ) <explained>"},
	"explained": {"<query>", "<select>", "<dml>", "EXECUTE <name>", "EXECUTE <name> ( <expr> )", "CREATE TABLE <qname> AS EXECUTE <name>", "CREATE <temporary> TABLE <qname> <oncommit> AS <query>", "DECLARE <name> CURSOR <hold> FOR <query>", "CREATE MATERIALIZED VIEW m AS <query>"},
	"utility": {
		"ALTER TABLE <qname> ALTER COLUMN <name> SET DEFAULT <expr>", "ALTER ROLE <name> SET <varname> <eq> <values>", "ALTER DATABASE <name> RESET ALL", "ALTER SYSTEM SET <varname> = <values>",
		"ALTER FUNCTION f ( int ) SET <varname> TO <value> RESET <varname>", "COPY <qname> FROM STDIN", "COPY ( <query> ) TO STDOUT WITH ( FORMAT csv )", "GRANT EXECUTE ON FUNCTION f ( int ) TO <name>",
		"VACUUM ( ANALYZE ) <qname>", "LOCK TABLE <qname> IN SHARE MODE", "TRUNCATE <qname>", "COMMENT ON TABLE <qname> IS <string>", "SHOW <varname>", "SHOW ALL", "ANALYZE <qname>", "CLUSTER <qname>",
		"ALTER TABLE <qname> RENAME TO <name>", "REINDEX TABLE <qname>", "IMPORT FOREIGN SCHEMA a FROM SERVER b INTO <name>", "ALTER TABLE t RESET ( fillfactor )", "CHECKPOINT", "REFRESH MATERIALIZED VIEW <qname>",
		"REASSIGN OWNED BY a TO session_user", "GRANT SET ON PARAMETER <varname> TO a", "ALTER DEFAULT PRIVILEGES IN SCHEMA <name> GRANT SELECT ON TABLES TO a",
	},
}
