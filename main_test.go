package pgmoor_test

import (
	"os"
	"testing"

	"github.com/pgmoor/pgmoor/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }
