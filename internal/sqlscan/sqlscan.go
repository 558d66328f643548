// Package sqlscan reports which session state a text of SQL may touch.
//
// The scanner follows the lexical rules of PostgreSQL (src/backend/parser/scan.l, all supported versions) and knows as
// much grammar as is needed to tell a statement that leaves something behind in the session from one that merely
// mentions the words. It takes the text in pieces of any size, keeps no reference to them and takes no memory. What a
// text says beyond that is asked of it as a whole: Settings, AppendDigest. A Cache remembers what was found.
//
// Its error is one-sided: an effect that is not reported is not caused by any text that the server accepts, while an
// effect that is reported may not occur. Not seen are effects hidden from the text: bodies of functions, of DO and of
// procedures, statements prepared earlier, queries in strings that a function runs, and names computed at run time.
//
// The text has to be in an encoding in which a byte below 0x80 always is that ASCII character. This holds for UTF8 and
// for whatever may be a server's encoding, not for the client-only encodings BIG5, GB18030, GBK, JOHAB, SHIFT_JIS_2004,
// SJIS and UHC, where a backslash or a letter may be half of a character.
package sqlscan

import "strings"

// Effect is a set of things that a text may do to the session. The zero value is a text that does none of them.
type Effect uint32

const (
	// Setting is a parameter set or reset for the session: SET, RESET, SET ROLE, SET SESSION AUTHORIZATION, SET SESSION
	// CHARACTERISTICS, an UPDATE of pg_settings, and set_config unless its third argument is the literal true. SET LOCAL,
	// SET TRANSACTION and SET CONSTRAINTS end with the transaction and are not reported.
	Setting Effect = 1 << iota
	// UnknownSetting is a Setting of which Settings cannot tell every name. A Scanner, which does not keep the text,
	// reports it with every Setting; Classify and Cache look again.
	UnknownSetting
	// Listen is LISTEN.
	Listen
	// Release is what may end something that was left in the session: CLOSE, DROP, DISCARD, UNLISTEN, DEALLOCATE, or one
	// of the functions pg_advisory_unlock, pg_advisory_unlock_shared and pg_advisory_unlock_all.
	Release
	// TempObject is a temporary object made, by CREATE TEMP or SELECT INTO TEMP, or any mention of a pg_temp schema. A
	// table that says ON COMMIT DROP ends with the transaction and is not reported.
	TempObject
	// Create is a statement that makes objects, which are temporary ones while pg_temp leads the search_path: CREATE, or
	// INTO behind anything but INSERT or MERGE as the first word.
	Create
	// HoldCursor is DECLARE CURSOR WITH HOLD.
	HoldCursor
	// AdvisoryLock is a function that takes a session-level advisory lock.
	AdvisoryLock
	// TryLock is a function that tries to take a session-level advisory lock.
	TryLock
	// Prepare is PREPARE, but not PREPARE TRANSACTION.
	Prepare
	// Execute is EXECUTE, alone or within EXPLAIN or CREATE TABLE AS. What the statement of that name does is not reported.
	Execute
	// Deallocate is DEALLOCATE.
	Deallocate
	// Load is LOAD.
	Load
	// Seed is the function setseed, or the parameter seed set, even for the transaction only.
	Seed
	// Sequence is one of the functions nextval and setval.
	Sequence
	// LastValue is one of the functions currval and lastval, which tell what the session has got from a sequence.
	LastValue
	// Foreign is a function that keeps state in the session which cannot be looked up: those of dblink, isn_weak,
	// sepgsql_setcon, replication origins and slots, and backups.
	Foreign
	// PrepView is a reading of pg_prepared_statements or pg_cursors, or of the function below one of them.
	PrepView
	// Pid is a function that takes a process id, or a view that shows those of sessions.
	Pid
	// Listed is a mention of a name that was given to NewCache. Only a Cache reports it.
	Listed
	// Discard is DISCARD.
	Discard
	// TxnEnd is a statement that can end a transaction block or concludes a prepared transaction.
	TxnEnd
	// TxnBegin is BEGIN or START TRANSACTION, or AND CHAIN at the end of a transaction.
	TxnBegin
	// Call is CALL or DO, the statements that run code which may commit.
	Call
	// Declare is DECLARE CURSOR, with or without HOLD.
	Declare
	// Lexical says that the text mentions what may change how later texts are read: standard_conforming_strings,
	// client_encoding, NAMES or set_config. Only Inspect reports it.
	Lexical
	// Unlisten is UNLISTEN.
	Unlisten
	// ListenView is the function pg_listening_channels.
	ListenView
	// Define is a statement that may change what names stand for, for every session: CREATE and INTO of anything that is not
	// temporary (INTO TEMP is reported, too), ALTER, IMPORT FOREIGN SCHEMA, COMMIT PREPARED, and DO, which is where scripts make what does
	// not exist yet.
	Define
	// Unsure says that the text could not be followed to its end, so that any other effect may be missing: it has a zero
	// byte, an identifier with Unicode escapes or a dollar quote with an overlong tag, or it ends within a token.
	Unsure
)

var effectNames = [...]string{
	"Setting", "UnknownSetting", "Listen", "Release", "TempObject", "Create", "HoldCursor", "AdvisoryLock", "TryLock",
	"Prepare", "Execute", "Deallocate", "Load", "Seed", "Sequence", "LastValue", "Foreign", "PrepView", "Pid", "Listed", "Discard",
	"TxnEnd", "TxnBegin", "Call", "Declare", "Lexical", "Unlisten", "ListenView", "Define", "Unsure",
}

// String returns the names of the effects joined by "|", or "none".
func (e Effect) String() string {
	if e == 0 {
		return "none"
	}
	var names []string
	for i, name := range effectNames {
		if e&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, "|")
}

// Verb says what a statement is, as far as it matters to the state of a transaction, of sequences or of settings.
type Verb uint8

const (
	// VerbNone is no statement: the text is empty or has nothing but blanks, comments and semicolons.
	VerbNone Verb = iota
	// VerbOther is any statement that is none of the following.
	VerbOther
	// VerbBegin is BEGIN or START TRANSACTION.
	VerbBegin
	// VerbCommit is COMMIT or END.
	VerbCommit
	// VerbRollback is ROLLBACK or ABORT.
	VerbRollback
	// VerbRollbackTo is ROLLBACK TO a savepoint.
	VerbRollbackTo
	// VerbSavepoint is SAVEPOINT.
	VerbSavepoint
	// VerbRelease is RELEASE of a savepoint.
	VerbRelease
	// VerbPrepareTransaction is PREPARE TRANSACTION.
	VerbPrepareTransaction
	// VerbCommitPrepared is COMMIT PREPARED.
	VerbCommitPrepared
	// VerbRollbackPrepared is ROLLBACK PREPARED.
	VerbRollbackPrepared
	// VerbInsert is INSERT or MERGE, which may take values of sequences by a default.
	VerbInsert
	// VerbSet is SET, RESET or DISCARD.
	VerbSet

	verbCount
)

// Scanner scans one text. The zero value is ready for a text whose plain strings know no backslash escapes
// (standard_conforming_strings on, the default of the server). It holds no pointers and may be copied.
type Scanner struct {
	effects Effect
	count   int32 // statements that are not empty, up to the current one
	depth   int32 // open parentheses
	nested  int32 // block comments around the current one
	cfgOpen int32 // depth of the arguments of the set_config that is being followed

	state     state
	kind      quoteKind
	gapLine   bool // the blanks behind a string literal have had a newline
	backslash bool // backslash escapes in plain strings, too

	open      bool // the current statement has at least one token
	updating  bool // it has had the word UPDATE
	lead      word // its first word
	prev      word // the word directly before, if the last token was one
	last      byte // what the last token that was none began with
	inserting bool // the last word INSERT or MERGE began a statement within another
	awaiting  bool // the statement behind WITH or PREPARE has not begun
	step      step
	cfg       config
	verb      Verb
	first     Verb

	matched uint8 // bytes of the tag that were seen in what may be the closing dollar quote
	length  uint8 // of what is in buf; bufSize+1 when it did not fit
	cfgLen  uint8 // of what is in cfgText
	cfgText [len(settingSeed) + 1]byte
	buf     [bufSize]byte
}

// bufSize bounds the words and the tags of dollar quotes that are kept whole. No identifier is longer than 63 bytes.
const bufSize = 64

// Classify returns the effects of a text that is at hand in one piece.
func Classify(text []byte, standardConformingStrings bool) Effect {
	var s Scanner
	s.Reset(standardConformingStrings)
	s.Feed(text)
	e := s.Finish()
	if e&(UnknownSetting|Unsure) == UnknownSetting && knowsSettings(text, standardConformingStrings) {
		e &^= UnknownSetting
	}
	return e
}

// Reset makes the scanner ready for another text. standardConformingStrings is the setting of that name in the session
// that will run the text. The server reads a whole text by the setting in force when the text arrives.
func (s *Scanner) Reset(standardConformingStrings bool) {
	*s = Scanner{backslash: !standardConformingStrings}
}

// Finish ends the text and returns its effects. The scanner has to be Reset before the next Feed.
func (s *Scanner) Finish() Effect {
	s.endText()
	s.endStatement()
	if s.effects&Setting != 0 {
		s.effects |= UnknownSetting
	}
	return s.effects
}

// Statements returns the number of statements in the text that are not empty. It is valid after Finish.
func (s *Scanner) Statements() int { return int(s.count) }

// Verb returns the verb of the first statement that is not empty. It is valid after Finish.
func (s *Scanner) Verb() Verb { return s.first }
