package pgmoor_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgmoor/pgmoor"
)

func TestConfigurationsThatMakeNoSenseAreRefused(t *testing.T) {
	for want, cfg := range map[string]pgmoor.Config{
		"Config.MaxConnections is -1: it must be 0 or more":                                              {MaxConnections: -1},
		"Config.MaxConnectionsPercent is 101: it must be between 1 and 100":                              {MaxConnectionsPercent: 101},
		"Config.MaxConnectionsPercent is -1: it must be between 1 and 100":                               {MaxConnectionsPercent: -1},
		"Config.MaxIdleConnectionsPercent is 60: it must not be more than MaxConnectionsPercent, 50":     {MaxConnectionsPercent: 50, MaxIdleConnectionsPercent: 60},
		"Config.MaxIdleConnectionsPercent is 101: it must be between 1 and 100, or NoIdle (none is kept": {MaxIdleConnectionsPercent: 101},
		"Config.MaxIdleConnectionsPercent is -2: it must be":                                             {MaxIdleConnectionsPercent: -2},
		"Config.BorrowTimeout is 5m1s: it must be at most 5m0s, or NoWait (an error unless":              {BorrowTimeout: 301 * time.Second},
		"Config.BorrowTimeout is -1s: it must be at most 5m0s":                                           {BorrowTimeout: -time.Second},
		"Config.IdleClientTimeout is 59s: it must be between 1m0s and 8h0m0s, or negative: no limit":     {IdleClientTimeout: 59 * time.Second},
		"Config.IdleClientTimeout is 8h0m1s: it must be between":                                         {IdleClientTimeout: 8*time.Hour + time.Second},
		"Config.MaxConnectionsPerUser is -1":                                                             {MaxConnectionsPerUser: -1},
		"Config.MaxConnectionsPerDatabase is -1":                                                         {MaxConnectionsPerDatabase: -1},
		"Config.MinConnections is -1":                                                                    {MinConnections: -1},
		"Config.MaxOpening is -1":                                                                        {MaxOpening: -1},
		"Config.MaxWaiting is -1":                                                                        {MaxWaiting: -1},
		"Config.MaxClients is -1":                                                                        {MaxClients: -1},
		"Config.ConnectionRate is -1":                                                                    {ConnectionRate: -1},
		"Config.HandshakeTimeout is -1s: it must be 0s or more":                                          {HandshakeTimeout: -time.Second},
		"Config.Upstream.ConnectTimeout is -1s":                                                          {Upstream: pgmoor.Upstream{ConnectTimeout: -time.Second}},
		"Config.InitQuery must be in ASCII":                                                              {InitQuery: "SET a.b = 'é'"},
		"Config.InitQuery is 16385 bytes: it must be at most 16384 bytes":                                {InitQuery: strings.Repeat(" ", 16385)},
	} {
		t.Run(want, func(t *testing.T) {
			cfg.Upstream.Hosts = []string{"db"}
			_, err := pgmoor.New(nil, cfg)
			require.ErrorContains(t, err, "pgmoor: "+want)
		})
	}
}

func TestBoundsOfTheConfigurationAreAllowed(t *testing.T) {
	for name, cfg := range map[string]pgmoor.Config{
		"least": {
			MaxConnectionsPercent: 1, MaxIdleConnectionsPercent: pgmoor.NoIdle, BorrowTimeout: pgmoor.NoWait, IdleClientTimeout: time.Minute,
			MaxClientLifetime: 1, MaxServerLifetime: 1, IdleTimeout: 1,
		},
		"most":  {MaxConnectionsPercent: 100, MaxIdleConnectionsPercent: 100, BorrowTimeout: 300 * time.Second, IdleClientTimeout: 8 * time.Hour},
		"none":  {IdleClientTimeout: -1, MaxClientLifetime: -1, MaxServerLifetime: -1, IdleTimeout: -1, UnpinInterval: -1},
		"alone": {MaxIdleConnectionsPercent: 100},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.Upstream.Hosts = []string{"db"}
			_, err := pgmoor.New(nil, cfg)
			require.NoError(t, err)
		})
	}
}
