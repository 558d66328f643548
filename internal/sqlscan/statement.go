package sqlscan

// A step is what is expected next in the few statements whose meaning hangs on the order of their words.
type step uint8

const (
	stepNone     step = iota
	stepSet           // after SET
	stepScoped        // after SET and a word that confines it to the transaction, unless that word is the class of a parameter
	stepPrepare       // after PREPARE
	stepPrepared      // after PREPARE TRANSACTION, which is a statement of that name if another word follows
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

type start struct {
	effects Effect
	step    step
	verb    Verb
}

// starts says what is known of a statement from its first word.
var starts = [wordCount]start{
	wordAbort:      {verb: VerbRollback},
	wordBegin:      {effects: TxnBegin, verb: VerbBegin},
	wordCall:       {effects: Call},
	wordCommit:     {verb: VerbCommit},
	wordDeallocate: {effects: Prepare},
	wordDiscard:    {effects: Discard},
	wordDo:         {effects: Call},
	wordEnd:        {verb: VerbCommit},
	wordExecute:    {effects: Prepare},
	wordListen:     {effects: Listen},
	wordLoad:       {effects: Load},
	wordPrepare:    {step: stepPrepare},
	wordRelease:    {verb: VerbRelease},
	wordReset:      {effects: Setting},
	wordRollback:   {verb: VerbRollback},
	wordSavepoint:  {verb: VerbSavepoint},
	wordSet:        {step: stepSet},
	wordStart:      {effects: TxnBegin, verb: VerbBegin},
	wordUnlisten:   {effects: Listen},
}

// nameEffects says what a name is reported as, wherever it stands.
var nameEffects = [wordCount]Effect{
	nameLimit:    Setting,
	nameLock:     AdvisoryLock,
	nameSeed:     Seed,
	nameSequence: Sequence,
	nameForeign:  Foreign,
	nameView:     PrepView,
	nameTemp:     TempObject,
}

// word takes the next word or quoted identifier.
func (s *Scanner) word(k word) {
	if s.lead == none {
		s.startStatement(k)
	} else if k != plain || s.step != stepNone {
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
	switch k {
	case wordTemp:
		s.temp()
	case wordExecute:
		if s.lead == wordExplain || s.lead == wordCreate && s.prev == wordAs {
			s.effects |= Prepare
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
	case wordUescape:
		s.effects |= Unsure
	}
}

// temp takes the word TEMP or TEMPORARY. In a list of columns, or as the target of INSERT, it is a name.
func (s *Scanner) temp() {
	switch s.prev {
	case wordCreate, wordReplace, wordLocal, wordGlobal, wordInto:
		if s.lead != wordInsert && s.lead != wordMerge {
			s.effects |= TempObject
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
	case k == wordTo:
		s.verb = VerbRollbackTo
	default:
		s.verb = VerbRollbackPrepared
	}
}

func (s *Scanner) advance(k word) {
	at := s.step
	s.step = stepNone
	switch at {
	case stepSet:
		switch k {
		case wordLocal, wordTransaction, wordConstraints:
			s.step = stepScoped
		default:
			s.effects |= Setting
		}
	case stepPrepare:
		if k == wordTransaction {
			s.step = stepPrepared
			s.verb = VerbPrepareTransaction
		} else {
			s.effects |= Prepare
		}
	case stepPrepared:
		s.effects |= Prepare
		s.verb = VerbOther
	}
}

// nameOrArgument takes a name of interest, or any word while the arguments of set_config are followed. One set_config
// within the arguments of another is too rare to be followed.
func (s *Scanner) nameOrArgument(k word) {
	s.effects |= nameEffects[k]
	switch {
	case k == nameSetConfig && s.cfg == cfgNone:
		s.cfg = cfgName
	case s.cfg == cfgThird && k == wordTrue:
		s.cfg = cfgTrue
	case k == nameSetConfig || s.cfg == cfgName || s.cfg >= cfgThird:
		s.giveUpConfig()
	}
}

func (s *Scanner) giveUpConfig() {
	s.cfg = cfgNone
	s.effects |= Setting
}

// token takes any token that is not a word, by its first byte, or each byte of an operator or number.
func (s *Scanner) token(c byte) {
	s.open = true
	s.prev = none
	switch c {
	case '(':
		s.depth++
	case ')':
		s.depth = max(s.depth-1, 0)
	case '.':
		if s.step == stepScoped {
			s.effects |= Setting
		}
	}
	if s.cfg != cfgNone {
		s.argument(c)
	}
}

// argument takes a token that is not a word while the arguments of set_config are followed.
func (s *Scanner) argument(c byte) {
	switch {
	case s.cfg == cfgName && c == '(':
		s.cfg = cfgFirst
		s.cfgOpen = s.depth
	case s.cfg == cfgTrue && c == ')':
		s.cfg = cfgNone
	case s.cfg == cfgName, s.cfg >= cfgThird, s.depth < s.cfgOpen:
		s.giveUpConfig()
	case c == ',' && s.depth == s.cfgOpen:
		s.cfg++
	}
}

// semicolon ends the statement, unless it separates the actions of a rule.
func (s *Scanner) semicolon() {
	if s.depth > 0 {
		s.token(';')
		return
	}
	s.endStatement()
}

func (s *Scanner) endStatement() {
	if s.cfg != cfgNone {
		s.giveUpConfig()
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
	s.open, s.lead, s.prev = false, none, none
	s.step, s.verb, s.depth = stepNone, VerbNone, 0
}
