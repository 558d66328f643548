package scram

// MechanismPlus is the name under which an exchange that binds the channel is advertised, in front of Mechanism.
const MechanismPlus = Mechanism + "-PLUS"

// endPoint is the type of channel binding that PostgreSQL has (RFC 5929).
const endPoint = "tls-server-end-point"

// maxShown is how many bytes of a client's own words PostgreSQL repeats in an error.
const maxShown = 30

// channel is what a Server knows of the connection that the exchange runs over.
type channel struct {
	data   string // tls-server-end-point; empty: MechanismPlus was not offered
	chosen bool   // the client has chosen MechanismPlus
}

// Bind says that MechanismPlus was offered, with the data of tls-server-end-point, which is the hash of the certificate
// that the client was shown; and whether the client has chosen it. A client that has not, and says that it would have if
// it had been offered, has talked to somebody in between. Call it before First.
func (s *Server) Bind(data []byte, chosen bool) { s.channel = channel{string(data), chosen} }

// gs2Header takes "n,,", "y,,", or with a binding "p=tls-server-end-point,,".
func (m *message) gs2Header(ch channel) error {
	switch c := m.peek(); {
	case (c == 'n' || c == 'y') && ch.chosen:
		return malformed("The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data.")
	case c == 'y' && ch.data != "":
		return &ProtocolError{
			Code: codeBadAuthorization, Msg: "SCRAM channel binding negotiation error",
			Detail: "The client supports SCRAM channel binding but thinks the server does not.  " +
				"However, this server does support channel binding.",
		}
	case c == 'n' || c == 'y':
		*m = (*m)[1:]
		if c := m.peek(); c != ',' {
			return malformed(`Comma expected, but found character "%s".`, printable(c))
		}
		*m = (*m)[1:]
	case c == 'p' && !ch.chosen:
		return malformed("The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes channel binding data.")
	case c == 'p':
		if err := m.bindingType(); err != nil {
			return err
		}
	default:
		return malformed(`Unexpected channel-binding flag "%s".`, printable(c))
	}
	return m.noIdentity()
}

// bindingType takes "p=tls-server-end-point,".
func (m *message) bindingType() error {
	name, err := m.expect('p')
	if err == nil && name != endPoint {
		err = violation(`unsupported SCRAM channel-binding type "`+shown(name)+`"`, "")
	}
	return err
}

// noIdentity takes the comma in front of which an authorization identity may stand.
func (m *message) noIdentity() error {
	switch c := m.peek(); c {
	case ',':
		*m = (*m)[1:]
		return nil
	case 'a':
		return unsupported("client uses authorization identity, but it is not supported")
	default:
		return malformed(`Unexpected attribute "%s" in client-first-message.`, printable(c))
	}
}

// checkBinding compares the attribute c of the client-final-message with what the client has to repeat there.
func (s *Server) checkBinding(attribute string) error {
	switch {
	case attribute == encode([]byte(s.header+s.channel.bound())):
		return nil
	case s.channel.chosen:
		return &ProtocolError{Code: codeBadAuthorization, Msg: "SCRAM channel binding check failed"}
	}
	return violation("unexpected SCRAM channel-binding attribute in client-final-message", "")
}

// bound returns what follows the header in the attribute c.
func (c channel) bound() string {
	if c.chosen {
		return c.data
	}
	return ""
}

// shown returns a client's words as PostgreSQL repeats them.
func shown(s string) string {
	b := []byte(s[:min(len(s), maxShown)])
	for i, c := range b {
		if c < '!' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}
