package sqlscan

// A word is what the scanner knows of a keyword or of the name of a function or view.
type word uint8

const (
	none  word = iota // no word
	plain             // a word without a meaning here

	// Keywords, which have no meaning in double quotes.

	wordAbort
	wordAlter
	wordAs
	wordAtomic
	wordBegin
	wordCall
	wordChain
	wordClose
	wordCommit
	wordConstraints
	wordCreate
	wordDeallocate
	wordDeclare
	wordDiscard
	wordDo
	wordDrop
	wordEnd
	wordExecute
	wordExplain
	wordFor
	wordFunction
	wordGlobal
	wordHold
	wordImport
	wordInsert
	wordInto
	wordListen
	wordLoad
	wordLocal
	wordMerge
	wordNo
	wordOn
	wordOr
	wordPrepare
	wordPrepared
	wordProcedure
	wordRelease
	wordReplace
	wordReset
	wordRollback
	wordSavepoint
	wordSeed
	wordSession
	wordSet
	wordStart
	wordTable
	wordTemp
	wordTo
	wordTransaction
	wordTrue
	wordUescape
	wordUnlisten
	wordUpdate
	wordWith

	// Names, from nameSetConfig on.

	nameSetConfig
	nameLimit // set_limit of pg_trgm sets a parameter
	nameSettings
	nameLock
	nameTryLock
	nameUnlock
	nameSeed
	nameSequence
	nameLastValue
	nameForeign
	nameView
	namePid
	nameChannels
	nameTemp

	wordCount
)

type entry struct {
	text string
	word word
}

var vocabulary = [...]entry{
	{"abort", wordAbort},
	{"alter", wordAlter},
	{"as", wordAs},
	{"atomic", wordAtomic},
	{"begin", wordBegin},
	{"call", wordCall},
	{"chain", wordChain},
	{"close", wordClose},
	{"commit", wordCommit},
	{"constraints", wordConstraints},
	{"create", wordCreate},
	{"deallocate", wordDeallocate},
	{"declare", wordDeclare},
	{"discard", wordDiscard},
	{"do", wordDo},
	{"drop", wordDrop},
	{"end", wordEnd},
	{"execute", wordExecute},
	{"explain", wordExplain},
	{"for", wordFor},
	{"function", wordFunction},
	{"global", wordGlobal},
	{"hold", wordHold},
	{"import", wordImport},
	{"insert", wordInsert},
	{"into", wordInto},
	{"listen", wordListen},
	{"load", wordLoad},
	{"local", wordLocal},
	{"merge", wordMerge},
	{"no", wordNo},
	{"on", wordOn},
	{"or", wordOr},
	{"prepare", wordPrepare},
	{"prepared", wordPrepared},
	{"procedure", wordProcedure},
	{"release", wordRelease},
	{"replace", wordReplace},
	{"reset", wordReset},
	{"rollback", wordRollback},
	{"savepoint", wordSavepoint},
	{"seed", wordSeed},
	{"session", wordSession},
	{"set", wordSet},
	{"start", wordStart},
	{"table", wordTable},
	{"temp", wordTemp},
	{"temporary", wordTemp},
	{"to", wordTo},
	{"transaction", wordTransaction},
	{"true", wordTrue},
	{"uescape", wordUescape},
	{"unlisten", wordUnlisten},
	{"update", wordUpdate},
	{"with", wordWith},

	{"set_config", nameSetConfig},
	{"set_limit", nameLimit},
	{"pg_settings", nameSettings},
	{"pg_advisory_lock", nameLock},
	{"pg_advisory_lock_shared", nameLock},
	{"pg_try_advisory_lock", nameTryLock},
	{"pg_try_advisory_lock_shared", nameTryLock},
	{"pg_advisory_unlock", nameUnlock},
	{"pg_advisory_unlock_shared", nameUnlock},
	{"pg_advisory_unlock_all", nameUnlock},
	{"setseed", nameSeed},
	{"nextval", nameSequence},
	{"setval", nameSequence},
	{"currval", nameLastValue},
	{"lastval", nameLastValue},
	{"pg_replication_origin_session_setup", nameForeign},
	{"pg_create_physical_replication_slot", nameForeign},
	{"pg_create_logical_replication_slot", nameForeign},
	{"pg_copy_physical_replication_slot", nameForeign},
	{"pg_copy_logical_replication_slot", nameForeign},
	{"pg_backup_start", nameForeign},
	{"isn_weak", nameForeign},        // of isn
	{"sepgsql_setcon", nameForeign},  // of sepgsql
	{"pg_start_backup", nameForeign}, // up to PostgreSQL 14
	{"pg_prepared_statements", nameView},
	{"pg_prepared_statement", nameView},
	{"pg_cursors", nameView},
	{"pg_cursor", nameView},
	{"pg_terminate_backend", namePid},
	{"pg_cancel_backend", namePid},
	{"pg_blocking_pids", namePid},
	{"pg_safe_snapshot_blocking_pids", namePid},
	{"pg_isolation_test_session_is_blocked", namePid},
	{"pg_log_backend_memory_contexts", namePid},
	{"pg_stat_get_activity", namePid},
	{"pg_stat_activity", namePid},
	{"pg_stat_replication", namePid},
	{"pg_stat_ssl", namePid},
	{"pg_locks", namePid},
	{"pg_listening_channels", nameChannels},
	{"pg_temp", nameTemp},
}

// Families of names, by what they begin with.
const (
	prefixForeign = "dblink_"
	prefixTemp    = "pg_temp_"
)

// buckets holds, by hash, the index into the vocabulary plus one of the first entry; chain the next one of the same hash.
var buckets, chain = index()

const bucketCount = 512

func index() (buckets [bucketCount]uint8, chain [len(vocabulary)]uint8) {
	for i, e := range vocabulary {
		h := hash([]byte(e.text))
		chain[i] = buckets[h]
		buckets[h] = uint8(i + 1)
	}
	return buckets, chain
}

// hash is the same for letters of either case.
func hash(w []byte) uint32 {
	n := len(w)
	first, last := uint32(w[0]&31), uint32(w[n-1]&31)
	return (first<<4 ^ last ^ uint32(n)*37) % bucketCount
}

// find looks up a word that is not in quotes.
func find(w []byte) word {
	for i := buckets[hash(w)]; i != 0; i = chain[i-1] {
		if e := &vocabulary[i-1]; len(e.text) == len(w) && equalFold(w, e.text) {
			return e.word
		}
	}
	switch w[0] | 0x20 {
	case 'd':
		if len(w) > len(prefixForeign) && equalFold(w, prefixForeign) {
			return nameForeign
		}
	case 'p':
		if len(w) > len(prefixTemp) && equalFold(w, prefixTemp) {
			return nameTemp
		}
	}
	return plain
}

// equalFold reports whether w begins with text, which is in lower case and not longer, in ASCII letters of either case.
func equalFold(w []byte, text string) bool {
	for i := range len(text) {
		c := w[i]
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != text[i] {
			return false
		}
	}
	return true
}

// findQuoted looks up the content of a quoted identifier, whose case counts.
func findQuoted(w []byte) word {
	if len(w) == 0 {
		return plain
	}
	for _, c := range w {
		if 'A' <= c && c <= 'Z' {
			return plain
		}
	}
	if k := find(w); k >= nameSetConfig {
		return k
	}
	return plain
}
