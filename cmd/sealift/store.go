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
	server.Teller
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

// openServed opens a store that a service may run on. It makes none, and brings
// none to this program's version: the service that runs may be of an earlier one.
func openServed(ctx context.Context, name string) (stateStore, error) {
	earlier := sqlstore.Earlier
	if pgstore.IsDSN(name) {
		earlier = pgstore.Earlier
	} else if _, err := os.Stat(name); err != nil {
		return nil, withHint(fmt.Errorf("open database: %w", err), "the service makes it on its first start")
	}
	old, err := earlier(ctx, name)
	if err != nil {
		return nil, err
	}
	if old {
		return nil, withHint(fmt.Errorf("%s has the tables of an earlier version of this program", storeName(name)),
			"use the program that the service runs, or update the service first: it brings the tables to its version when it starts")
	}
	return openStore(ctx, name)
}

// storeName is what may be said of a store: a DSN without what is secret.
func storeName(name string) string {
	if pgstore.IsDSN(name) {
		return pgstore.Name(name)
	}
	return fmt.Sprintf("file %s", name)
}
