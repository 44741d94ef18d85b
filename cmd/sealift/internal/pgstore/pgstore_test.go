package pgstore

import (
	"testing"

	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/cmd/sealift/internal/pgtest"
)

func open(t testing.TB, dsn string) *Store {
	t.Helper()
	s, err := Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestStore(t *testing.T) {
	pg := pgtest.Start(t)
	again := func(t *testing.T, s server.Store) server.Store { return open(t, s.(*Store).pool.Config().ConnString()) }
	storetest.Run(t, storetest.Subject{
		Open:    func(t *testing.T) server.Store { return open(t, pg.Database(t)) },
		Replica: again,
		Reopen: func(t *testing.T, s server.Store) server.Store {
			pg.Kill()
			pg.Restart(t)
			return again(t, s)
		},
	})
}
