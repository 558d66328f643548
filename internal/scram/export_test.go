package scram

// SetNonce makes the server's part of the nonce known in advance.
func (s *Server) SetNonce(nonce string) { s.serverNonce = nonce }
