package sqlscan

import (
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

type outcome struct {
	effects Effect
	verb    Verb
	count   int
}

func scan(std bool, parts ...string) outcome {
	var s Scanner
	s.Reset(std)
	for _, p := range parts {
		s.Feed([]byte(p))
	}
	e := s.Finish()
	return outcome{e, s.Verb(), s.Statements()}
}

func bytewise(sql string) []string {
	parts := make([]string, len(sql))
	for i := range parts {
		parts[i] = sql[i : i+1]
	}
	return parts
}

func TestClassifyReportsTheEffectsOfAText(t *testing.T) {
	for _, c := range cases {
		require.Equal(t, c.want.String(), Classify([]byte(c.sql), true).String(), "%s: %q", c.name, c.sql)
	}
	for _, c := range oldCases {
		require.Equal(t, c.want.String(), Classify([]byte(c.sql), false).String(), "%s: %q", c.name, c.sql)
	}
}

func TestWordsAreFoundInEitherCase(t *testing.T) {
	for _, e := range vocabulary {
		require.Equal(t, e.word, find([]byte(e.text)), e.text)
		require.Equal(t, e.word, find([]byte(strings.ToUpper(e.text))), e.text)
		require.Equal(t, plain, find([]byte(e.text+"x")), e.text)
		require.Equal(t, plain, find([]byte("x"+e.text)), e.text)
		require.Less(t, len(e.text), bufSize, e.text)
	}
}

func TestQuotedKeywordsAreNames(t *testing.T) {
	for _, e := range vocabulary {
		want := plain
		if e.word >= nameSetConfig {
			want = e.word
		}
		require.Equal(t, want, findQuoted([]byte(e.text)), e.text)
		require.Equal(t, plain, findQuoted([]byte(strings.ToUpper(e.text))), e.text)
	}
}

func TestKeywordsInStringsAndCommentsAreNotReported(t *testing.T) {
	for _, e := range vocabulary {
		for _, f := range []string{"'", "$$", "$x$"} {
			require.Zero(t, Classify([]byte("SELECT "+f+"; "+e.text+"(1) a "+f), true), e.text)
		}
		require.Zero(t, Classify([]byte("SELECT 1 /* ; "+e.text+" */ -- ; "+e.text), true), e.text)
	}
}

func TestVerbIsThatOfTheFirstStatement(t *testing.T) {
	for _, c := range []struct {
		sql  string
		want Verb
	}{
		{"", VerbNone},
		{" ; /* a */ ; -- b", VerbNone},
		{"SELECT 1", VerbOther},
		{"1", VerbOther},
		{"'a'", VerbOther},
		{`"commit"`, VerbOther},
		{"-", VerbOther},
		{"/* a", VerbOther},
		{"BEGIN", VerbBegin},
		{"START TRANSACTION", VerbBegin},
		{"COMMIT AND CHAIN", VerbCommit},
		{"END;", VerbCommit},
		{"/* x */ ROLLBACK /* TO a */;", VerbRollback},
		{"ABORT", VerbRollback},
		{"ROLLBACK; COMMIT", VerbRollback},
		{"ROLLBACK TO a", VerbRollbackTo},
		{"ROLLBACK TRANSACTION TO a", VerbRollbackTo},
		{"rollback\nto\nto", VerbRollbackTo},
		{"SAVEPOINT a", VerbSavepoint},
		{"RELEASE a", VerbRelease},
		{"PREPARE TRANSACTION 'a'", VerbPrepareTransaction},
		{"PREPARE transaction AS COMMIT", VerbOther},
		{"PREPARE a AS SELECT 1", VerbOther},
		{"COMMIT PREPARED 'a'", VerbCommitPrepared},
		{"ROLLBACK PREPARED 'a'", VerbRollbackPrepared},
		{";;ROLLBACK", VerbRollback},
		{"/* a */ INSERT INTO t VALUES (1); ROLLBACK", VerbInsert},
		{"merge INTO t USING u ON true WHEN MATCHED THEN DELETE", VerbInsert},
		{"WITH x AS (SELECT 1) INSERT INTO t SELECT 1", VerbOther},
		{`"insert"`, VerbOther},
		{"SET LOCAL a = 1", VerbSet},
		{"reset ALL", VerbSet},
		{"DISCARD ALL", VerbSet},
		{"UPDATE t SET a = 1", VerbOther},
	} {
		require.Equal(t, c.want, scan(true, c.sql).verb, c.sql)
		require.Equal(t, c.want, scan(true, bytewise(c.sql)...).verb, c.sql)
	}
}

func TestStatementsCountsThoseThatAreNotEmpty(t *testing.T) {
	for _, c := range []struct {
		sql  string
		want int
	}{
		{"", 0},
		{";", 0},
		{" ; -- a\n ; /* b */", 0},
		{"SELECT 1", 1},
		{"SELECT 1;", 1},
		{"SELECT 1;;SELECT 2", 2},
		{"ROLLBACK; -- a", 1},
		{"SELECT ';'; SELECT $$;$$; SELECT \";\"", 3},
		{"CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2); SELECT 3", 2},
		{"SELECT (1)); SELECT 2", 2},
		{"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END", 1},
		{"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END; SELECT 3", 2},
		{"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN a THEN 1 END; END; ; SELECT 3", 2},
		{"CREATE FUNCTION begin() RETURNS int RETURN 1; END", 2},
		{"?", 1},
	} {
		require.Equal(t, c.want, scan(true, c.sql).count, c.sql)
	}
}

func TestWhereATextIsCutMakesNoDifference(t *testing.T) {
	for i, c := range append(append([]sqlCase{}, cases...), oldCases...) {
		std := i < len(cases)
		want := scan(std, c.sql)
		require.Equal(t, want, scan(std, bytewise(c.sql)...), "%s, by the byte", c.name)
		for cut := range len(c.sql) {
			require.Equal(t, want, scan(std, c.sql[:cut], c.sql[cut:]), "%s, cut at %d", c.name, cut)
		}
	}
}

func TestABlockCommentBetweenTokensMakesNoDifference(t *testing.T) {
	for _, c := range cases {
		checkComments(t, c.sql)
	}
}

// checkComments puts a comment in front of each blank that stands between two tokens. Behind a string literal it would
// make a difference.
func checkComments(t *testing.T, sql string) {
	want := scan(true, sql)
	var s Scanner
	for i := range len(sql) {
		if s.state == inGround && sql[i] == ' ' {
			require.Equal(t, want, scan(true, sql[:i], "/* ' */", sql[i:]), "%q, at %d", sql, i)
		}
		s.Feed([]byte{sql[i]})
	}
}

func TestResetForgetsTheTextBefore(t *testing.T) {
	var s Scanner
	for _, c := range cases {
		s.Feed([]byte("PREPARE TRANSACTION set_config((/* /* $a$ 'x"))
		s.Reset(true)
		s.Feed([]byte(c.sql))
		require.Equal(t, c.want&^UnknownSetting, s.Finish()&^UnknownSetting, c.name)
	}
}

func TestFinishTwiceGivesTheSame(t *testing.T) {
	var s Scanner
	s.Feed([]byte("SELECT 'x"))
	require.Equal(t, Unsure, s.Finish())
	require.Equal(t, Unsure, s.Finish())
	require.Equal(t, 1, s.Statements())
}

func TestEffectNamesItsMembers(t *testing.T) {
	require.Equal(t, "none", Effect(0).String())
	require.Equal(t, "Setting|TxnEnd|Unsure", (Setting | TxnEnd | Unsure).String())
	require.Len(t, strings.Split((Unsure<<1-1).String(), "|"), len(effectNames))
}

func TestScannerTakesNoMemory(t *testing.T) {
	require.LessOrEqual(t, unsafe.Sizeof(Scanner{}), uintptr(160))
	text := []byte(everything())
	require.Zero(t, testing.AllocsPerRun(100, func() { Classify(text, true) }))
	var s Scanner
	require.Zero(t, testing.AllocsPerRun(100, func() {
		s.Reset(true)
		for i := range text {
			s.Feed(text[i : i+1])
		}
		s.Finish()
	}))
}

func everything() string {
	var b strings.Builder
	for _, c := range cases {
		b.WriteString(c.sql + "\n;")
	}
	return b.String()
}

func FuzzScanner(f *testing.F) {
	for _, c := range cases {
		f.Add(c.sql, true, uint(len(c.sql)/2))
	}
	for _, c := range oldCases {
		f.Add(c.sql, false, uint(len(c.sql)/2))
	}
	f.Fuzz(func(t *testing.T, sql string, std bool, at uint) {
		want := scan(std, sql)
		cut := int(at % uint(len(sql)+1))
		require.Equal(t, want, scan(std, sql[:cut], sql[cut:]))
		var s Scanner
		s.Reset(std)
		for i := range len(sql) {
			s.Feed([]byte{sql[i]})
		}
		e := s.Finish()
		require.Equal(t, want, outcome{e, s.Verb(), s.Statements()})
		require.Equal(t, want.count == 0, want.verb == VerbNone)
		if std && len(sql) < 200 {
			checkComments(t, sql)
		}
	})
}

func BenchmarkClassify(b *testing.B) {
	for _, c := range []struct{ name, sql string }{
		{"pgbench", "SELECT abalance FROM pgbench_accounts WHERE aid = 1;"},
		{"insert", "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (1, 1, 1, -3, CURRENT_TIMESTAMP);"},
		{"join", "SELECT o.id, o.created_at, c.name, c.email, sum(l.quantity * l.price) AS total FROM orders o JOIN customers c ON c.id = o.customer_id LEFT JOIN order_lines l ON l.order_id = o.id WHERE o.status = $1 AND c.region IN ('eu', 'us') GROUP BY 1, 2, 3, 4"},
		{"quoted", `SELECT "public"."User"."id", "public"."User"."email", "public"."User"."name", "public"."User"."createdAt" FROM "public"."User" WHERE ("public"."User"."id" = $1 AND 1=1) ORDER BY "public"."User"."id" ASC LIMIT $2 OFFSET $3`},
	} {
		text := []byte(c.sql)
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				Classify(text, true)
			}
		})
	}
}
