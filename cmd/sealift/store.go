package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/pgstore"
	"github.com/sealift/sealift/cmd/sealift/internal/sqlstore"
)

// stateStore is a store as the commands use it.
type stateStore interface {
	server.Archive
	server.Pruner
	Close() error
}

// openStore opens the store that a configuration names. What is not there yet
// is made: a file on the first start, the tables of a database.
func openStore(ctx context.Context, name string) (stateStore, error) {
	if pgstore.IsDSN(name) {
		s, err := pgstore.Open(ctx, name)
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	if _, err := os.Stat(name); errors.Is(err, os.ErrNotExist) {
		s, err := sqlstore.Create(ctx, name)
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	s, err := sqlstore.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// storeName is what may be said of a store: a DSN without what is secret.
func storeName(name string) string {
	if pgstore.IsDSN(name) {
		return pgstore.Name(name)
	}
	return fmt.Sprintf("file %s", name)
}
