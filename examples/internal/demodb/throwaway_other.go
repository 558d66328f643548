//go:build !unix

package demodb

import (
	"context"
	"errors"
)

type server struct{}

func (*server) stop() error { return nil }

func openThrowaway(context.Context, func(string)) (*DB, error) {
	return nil, errors.New("on this system a server has to be named: -upstream postgres://user:password@host/database")
}
