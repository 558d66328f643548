package pgmoor

// WithPlainIO returns cfg with every connection on the ordinary path.
func WithPlainIO(cfg Config) Config { cfg.plainIO = true; return cfg }

// WithRotation returns cfg with server connections lent in turn.
func WithRotation(cfg Config) Config { cfg.RoundRobin = true; return cfg }
