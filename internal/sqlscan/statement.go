package sqlscan

// A step is what is expected next in the few statements whose meaning hangs on the order of their words.
type step uint8

const (
	stepNone     step = iota
	stepSet           // after SET
	stepScoped        // after SET and a word that confines it to the transaction, unless that word is the class of a parameter
	stepPrepare       // after PREPARE
	stepPrepared      // after PREPARE TRANSACTION, which is a statement of that name if another word follows
	stepCreate        // after CREATE and words that may stand in front of what is made
	stepTemp          // after CREATE TEMP, where a table may follow
	stepTable         // in the head of a temporary table, which may say ON COMMIT DROP
	stepOn            // after ON in it
	stepCommit        // after ON COMMIT in it
	stepRoutine       // in a function or procedure, which may have a body of the form BEGIN ATOMIC ... END
	stepBodyTop       // in that body, where a statement begins, or its END
	stepBody          // within a statement of that body
)

// A config is how far the arguments of a call of set_config were followed, to see whether the third is the literal true.
type config uint8

const (
	cfgNone config = iota
	cfgName
	cfgFirst
	cfgSecond
	cfgThird
	cfgTrue
)

// settingSeed is the parameter that is not a setting but seeds the generator of random numbers.
const settingSeed = "seed"

type start struct {
	effects Effect
	step    step
	verb    Verb
}

// starts says what is known of a statement from its first word.
var starts = [wordCount]start{
	wordAbort:      {verb: VerbRollback},
	wordAlter:      {effects: Define},
	wordBegin:      {effects: TxnBegin, verb: VerbBegin},
	wordCall:       {effects: Call},
	wordClose:      {effects: Release},
	wordCommit:     {verb: VerbCommit},
	wordCreate:     {effects: Create, step: stepCreate},
	wordDeallocate: {effects: Deallocate | Release},
	wordDeclare:    {effects: Declare},
	wordDiscard:    {effects: Discard | Release, verb: VerbSet},
	wordDo:         {effects: Call | Define},
	wordDrop:       {effects: Release},
	wordEnd:        {verb: VerbCommit},
	wordExecute:    {effects: Execute},
	wordImport:     {effects: Define},
	wordInsert:     {verb: VerbInsert},
	wordListen:     {effects: Listen},
	wordMerge:      {verb: VerbInsert},
	wordLoad:       {effects: Load},
	wordPrepare:    {step: stepPrepare},
	wordRelease:    {verb: VerbRelease},
	wordReset:      {effects: Setting, verb: VerbSet},
	wordRollback:   {verb: VerbRollback},
	wordSavepoint:  {verb: VerbSavepoint},
	wordSet:        {step: stepSet, verb: VerbSet},
	wordStart:      {effects: TxnBegin, verb: VerbBegin},
	wordUnlisten:   {effects: Release | Unlisten},
}

// nameEffects says what a name is reported as, wherever it stands.
var nameEffects = [wordCount]Effect{
	nameLimit:     Setting,
	nameLock:      AdvisoryLock,
	nameTryLock:   TryLock,
	nameUnlock:    Release,
	nameSeed:      Seed,
	nameSequence:  Sequence,
	nameLastValue: LastValue,
	nameForeign:   Foreign,
	nameView:      PrepView,
	namePid:       Pid,
	nameChannels:  ListenView,
	nameTemp:      TempObject,
}

// word takes the next word or quoted identifier.
func (s *Scanner) word(k word) {
	if s.lead == none {
		s.startStatement(k)
	} else if k != plain || s.step != stepNone || s.awaiting {
		s.follow(k)
	}
	if s.cfg != cfgNone || k >= nameSetConfig {
		s.nameOrArgument(k)
	}
	s.prev = k
}

func (s *Scanner) startStatement(k word) {
	s.open = true
	s.lead = k
	s.updating = k == wordUpdate
	s.awaiting = k == wordWith || k == wordPrepare
	at := &starts[k]
	s.effects |= at.effects
	s.step = at.step
	s.verb = at.verb
}

// follow takes a word that is not the first of its statement.
func (s *Scanner) follow(k word) {
	if s.step != stepNone {
		s.advance(k)
	}
	main := s.awaiting && s.beginsMain(k)
	switch k {
	case wordTemp:
		s.temp()
	case wordInto:
		s.into()
	case wordInsert, wordMerge:
		s.inserting = main || s.prev == none && s.last == '('
	case wordCreate:
		if s.lead == wordExplain {
			s.effects |= Create
			s.step = stepCreate
		}
	case wordExecute:
		if s.lead == wordExplain || s.lead == wordCreate && s.prev == wordAs {
			s.effects |= Execute
		}
	case wordHold:
		if s.lead == wordDeclare && s.prev == wordWith {
			s.effects |= HoldCursor
		}
	case wordFor:
		if s.lead == wordDeclare { // the query begins
			s.lead = plain
		}
	case wordTo, wordPrepared, wordChain:
		s.endingClause(k)
	case wordSeed:
		s.seedWord()
	case wordUpdate:
		s.updating = true
	case wordUescape:
		s.effects |= Unsure
	}
}

// beginsMain reports whether a word is the first of the statement that is prepared, or that follows WITH.
func (s *Scanner) beginsMain(k word) bool {
	behind := s.lead == wordPrepare && s.prev == wordAs || s.lead == wordWith && s.prev == none && s.last == ')' && k != wordAs
	if s.depth > 0 || !behind {
		return false
	}
	s.awaiting = false
	return true
}

// into takes the word INTO, which makes a table unless it belongs to an INSERT or MERGE.
func (s *Scanner) into() {
	switch {
	case s.lead == wordInsert, s.lead == wordMerge, s.inserting && (s.prev == wordInsert || s.prev == wordMerge):
	default:
		s.effects |= Create | Define // also in front of TEMP, which may be the table's name
	}
}

// temp takes the word TEMP or TEMPORARY. In a list of columns, or as the target of INSERT, it is a name. In a CREATE at
// the start of the statement it is up to tempTable.
func (s *Scanner) temp() {
	if s.step == stepTemp {
		return
	}
	switch s.prev {
	case wordCreate, wordReplace, wordLocal, wordGlobal, wordInto:
		if s.lead != wordInsert && s.lead != wordMerge {
			s.effects |= TempObject
		}
	}
}

// seedWord takes the word SEED, which is the name of a parameter directly behind SET, SET LOCAL or SET SESSION.
func (s *Scanner) seedWord() {
	switch s.prev {
	case wordSet, wordLocal, wordSession:
		if s.lead == wordSet {
			s.effects |= Seed
		}
	}
}

// endingClause takes a word that makes COMMIT or ROLLBACK something else.
func (s *Scanner) endingClause(k word) {
	switch {
	case s.verb != VerbCommit && s.verb != VerbRollback:
	case k == wordChain:
		if s.prev != wordNo {
			s.effects |= TxnBegin
		}
	case s.verb == VerbCommit:
		s.verb = VerbCommitPrepared
		s.effects |= Define // whatever the transaction has defined
	case k == wordTo:
		s.verb = VerbRollbackTo
	default:
		s.verb = VerbRollbackPrepared
	}
}

// advance takes a word in a statement whose meaning hangs on the order of its words.
func (s *Scanner) advance(k word) {
	switch s.step {
	case stepSet:
		s.set(k)
	case stepScoped:
		s.step = stepNone
	case stepPrepare, stepPrepared:
		s.prepare(k)
	case stepCreate:
		s.create(k)
	case stepTemp, stepTable, stepOn, stepCommit:
		s.tempTable(k)
	case stepRoutine, stepBodyTop, stepBody:
		s.routine(k)
	}
}

func (s *Scanner) set(k word) {
	switch k {
	case wordLocal, wordTransaction, wordConstraints:
		s.step = stepScoped
	default:
		s.step = stepNone
		s.effects |= Setting
	}
}

func (s *Scanner) prepare(k word) {
	switch {
	case s.step == stepPrepared:
		s.step = stepNone
		s.effects |= Prepare
		s.verb = VerbOther
	case k == wordTransaction:
		s.step = stepPrepared
		s.verb = VerbPrepareTransaction
	default:
		s.step = stepNone
		s.effects |= Prepare
	}
}

func (s *Scanner) create(k word) {
	switch k {
	case wordOr, wordReplace, wordLocal, wordGlobal:
		return
	case wordTemp:
		s.step = stepTemp
		return
	case wordFunction, wordProcedure:
		s.step = stepRoutine
	default:
		s.step = stepNone
	}
	s.effects |= Define
}

// tempTable looks for ON COMMIT DROP in the head of a temporary table. Outside of parentheses and in front of AS nothing
// else can be spelled like that: ON is reserved, and as part of a qualified name it is not followed by a word COMMIT.
func (s *Scanner) tempTable(k word) {
	switch {
	case s.step == stepTemp && k == wordTable:
		s.step = stepTable
	case s.step == stepTemp, k == wordAs && s.depth == 0:
		s.step = stepNone
		s.effects |= TempObject
	case k == wordOn && s.depth == 0:
		s.step = stepOn
	case s.step == stepOn && k == wordCommit && s.prev == wordOn:
		s.step = stepCommit
	case s.step == stepCommit && k == wordDrop && s.prev == wordCommit:
		s.step = stepNone
	default:
		s.step = stepTable
	}
}

// routine follows the body of a function or procedure, whose statements are no statements of the text. Its END directly
// follows a semicolon or ATOMIC; none of its statements can begin with that word, and the END of a CASE cannot stand there.
// A body that is thought to have ended too early only has the rest of its statements reported, too.
func (s *Scanner) routine(k word) {
	switch {
	case s.step == stepRoutine:
		if k == wordAtomic && s.prev == wordBegin && s.depth == 0 {
			s.step = stepBodyTop
		}
	case s.step == stepBodyTop && k == wordEnd:
		s.step = stepNone
	default:
		s.step = stepBody
	}
}

// nameOrArgument takes a name of interest, or any word while the arguments of set_config are followed. That one set_config
// is within the arguments of another is too rare for both to be followed: the outer one is given up.
func (s *Scanner) nameOrArgument(k word) {
	s.effects |= nameEffects[k]
	if k == nameSettings && s.updating { // a rule turns an UPDATE of it into set_config
		s.effects |= Setting
	}
	switch {
	case k == nameSetConfig:
		if s.cfg != cfgNone {
			s.giveUpConfig()
		}
		s.cfg = cfgName
	case s.cfg == cfgThird && k == wordTrue:
		s.cfg = cfgTrue
	case s.cfg == cfgName || s.cfg >= cfgThird:
		s.giveUpConfig()
	}
}

func (s *Scanner) giveUpConfig() {
	s.cfg = cfgNone
	s.effects |= Setting
}

// token takes any token that is not a word, by its first byte, or each byte of an operator.
func (s *Scanner) token(c byte) {
	s.open = true
	s.prev, s.last = none, c
	switch c {
	case '(':
		s.depth++
	case ')':
		s.depth = max(s.depth-1, 0)
	}
	if s.step != stepNone {
		s.stepToken(c)
	}
	if s.cfg != cfgNone {
		s.argument(c)
	}
}

func (s *Scanner) stepToken(c byte) {
	switch s.step {
	case stepScoped:
		s.step = stepNone
		if c == '.' {
			s.effects |= Setting
		}
	case stepBodyTop:
		s.step = stepBody
	}
}

// argument takes a token that is not a word while the arguments of set_config are followed.
func (s *Scanner) argument(c byte) {
	switch {
	case s.cfg == cfgName && c == '(':
		s.cfg = cfgFirst
		s.cfgOpen = s.depth
		s.cfgLen = 0
	case s.cfg == cfgTrue && c == ')':
		s.cfg = cfgNone
	case s.cfg == cfgName, s.cfg >= cfgThird, s.depth < s.cfgOpen:
		s.giveUpConfig()
	case c == ',' && s.depth == s.cfgOpen:
		if s.cfg == cfgFirst && int(s.cfgLen) == len(settingSeed) && equalFold(s.cfgText[:], settingSeed) {
			s.effects |= Seed
		}
		s.cfg++
	}
}

// literal takes a piece of what a string says, which may be the name that set_config is given.
func (s *Scanner) literal(p []byte) {
	if s.cfg == cfgFirst {
		s.cfgLen += uint8(copy(s.cfgText[s.cfgLen:], p))
	}
}

// escaped takes an escape sequence in a string, which may spell anything.
func (s *Scanner) escaped() {
	if s.cfg == cfgFirst {
		s.effects |= Seed
	}
}

// semicolon ends the statement, unless it separates the actions of a rule or is in the body of a function.
func (s *Scanner) semicolon() {
	body := s.step == stepBodyTop || s.step == stepBody
	if s.depth == 0 && !body {
		s.endStatement()
		return
	}
	s.token(';')
	if s.depth == 0 {
		s.step = stepBodyTop
	}
}

func (s *Scanner) endStatement() {
	if s.cfg != cfgNone {
		s.giveUpConfig()
	}
	if stepTemp <= s.step && s.step <= stepCommit {
		s.effects |= TempObject
	}
	switch s.verb {
	case VerbCommit, VerbRollback, VerbPrepareTransaction, VerbCommitPrepared, VerbRollbackPrepared:
		s.effects |= TxnEnd
	}
	if s.open {
		s.count++
		if s.count == 1 {
			s.first = max(s.verb, VerbOther)
		}
	}
	s.open, s.lead, s.prev, s.last = false, none, none, 0
	s.step, s.verb, s.depth = stepNone, VerbNone, 0
}
