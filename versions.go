package pgmoor

import (
	"crypto/subtle"
	"sync/atomic"

	"github.com/pgmoor/pgmoor/internal/scram"
)

// This file is about what a secret was before it was changed.

// version is one version of a secret. It is never changed.
type version struct {
	value  string
	before *version // the version that it took the place of, if that still counts; has none itself
	of     any      // the source that told both this and others before or behind it; nil: that is not known
	serial uint64   // later ones of the same source have greater ones
}

// WithPrevious returns the secret with what it was before, for the time in which not everybody knows of the change:
//
//   - Clients may log in with either. [Cleartext] and [MD5] compare with both. One exchange of [SCRAM] tells the client
//     one salt and number of iterations: where one of both is a SCRAM verifier those are the verifier's, so that the other
//     must be a password in clear, or a verifier with the same salt and iterations. Of two verifiers with different salts,
//     as PostgreSQL makes them, only the current one counts. With MD5, a previous SCRAM verifier does not count.
//   - Where a server refuses the current one, the proxy tries the previous one, if that is in clear.
//
// Only one previous version counts: one that previous has itself is left out. A previous Secret that is none, or the same,
// or the previous one of none, changes nothing.
func (s Secret) WithPrevious(previous Secret) Secret {
	if s.v == nil || previous.v == nil || s.same(previous) {
		return s
	}
	v, before := **s.v, **previous.v
	before.before = nil
	v.before = &before
	return newSecret(v)
}

func newSecret(v version) Secret {
	p := &v
	return Secret{&p}
}

// previous returns what the secret was before; the zero Secret where that does not count.
func (s Secret) previous() Secret {
	if s.v == nil || (*s.v).before == nil {
		return Secret{}
	}
	return newSecret(*(*s.v).before)
}

// alone returns the secret without a previous version.
func (s Secret) alone() Secret {
	if s.v == nil || (*s.v).before == nil {
		return s
	}
	v := **s.v
	v.before = nil
	return newSecret(v)
}

// same reports whether both are the same text, whatever they were before.
func (s Secret) same(o Secret) bool {
	return s.IsZero() == o.IsZero() && subtle.ConstantTimeCompare([]byte(s.reveal()), []byte(o.reveal())) == 1
}

// versions counts the versions that sources have told of.
var versions atomic.Uint64

// toldBy returns the secret marked as one that a source has told of just now, behind all others of its.
func (s Secret) toldBy(source any) Secret {
	if s.v == nil {
		return s
	}
	v := **s.v
	v.of, v.serial = source, versions.Add(1)
	return newSecret(v)
}

// replaces reports whether the secret is known to have taken the place of o: a source says so, or o is its previous version.
// That they differ is not enough: there are secrets that are made anew for each login, such as tokens.
func (s Secret) replaces(o Secret) bool {
	switch {
	case s.v == nil || o.v == nil || s.same(o):
		return false
	case (*s.v).of != nil && (*s.v).of == (*o.v).of:
		return (*s.v).serial > (*o.v).serial
	}
	return s.previous().same(o)
}

// derive returns a verifier of a user's password in clear, the secret's current version. It has the salt of the previous one where that
// is a verifier, so that one exchange can be about both.
func (a *scramAuth) derive(user, password string, secret Secret) (scram.Verifier, error) {
	if old := secret.previous(); old.isVerifier() {
		if v, err := scram.ParseVerifier(old.reveal()); err == nil {
			return a.derived.like(v, password)
		}
	}
	return a.derived.get(user, password)
}

// previous returns a verifier of the secret's previous version with the salt of v, the current one's, if there can be one.
func (a *scramAuth) previous(v scram.Verifier, secret Secret) (old scram.Verifier, ok bool) {
	before := secret.previous()
	if pw, clear := before.password(); clear && pw != "" {
		old, err := a.derived.like(v, pw)
		return old, err == nil
	}
	if !before.isVerifier() {
		return old, false
	}
	old, err := scram.ParseVerifier(before.reveal())
	return old, err == nil && old.SharesCost(v)
}
