package saga_test

import (
	"testing"

	"github.com/pgjet/pgjet/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }
