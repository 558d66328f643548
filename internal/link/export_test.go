package link

// Holds reports whether the link holds a buffer; for the goroutine that called Run.
func (l *Link) Holds() bool { return l.in != nil }
