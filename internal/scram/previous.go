package scram

import "bytes"

// AcceptToo makes the exchange one about old as well, the Verifier of the password that was in force before: a client that
// proves to know either passes. Both must have the same salt and number of iterations, or it panics: the client is told of one
// only. It is called before First.
func (s *Server) AcceptToo(old Verifier) {
	if !old.valid() || !old.SharesCost(s.verifier) {
		panic("scram: AcceptToo needs a Verifier with the same salt and iterations")
	}
	s.old = &old
}

// SharesCost reports whether a client derives its keys for v and o from the same salt with the same number of iterations.
func (v Verifier) SharesCost(o Verifier) bool {
	return v.Iterations == o.Iterations && bytes.Equal(v.Salt, o.Salt)
}

// proven returns the Verifier whose password the client has proved to know. It does the same work whichever it is, and
// whether there are two or one: time does not tell a user whose password was just changed.
func (s *Server) proven(proof []byte, unproved string) (v *Verifier, ok bool) {
	v, old := &s.verifier, s.old
	if old == nil {
		old = v
	}
	current, previous := s.proves(v, proof, unproved), s.proves(old, proof, unproved)
	if previous && !current {
		v = old
	}
	return v, current || previous
}
