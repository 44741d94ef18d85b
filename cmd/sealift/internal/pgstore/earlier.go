package pgstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Earlier reports whether Open would bring the tables to our version, and so
// take them from replicas of an earlier version that run on them. It changes
// nothing. A database without tables is not of an earlier version.
func Earlier(ctx context.Context, dsn string) (bool, error) {
	name := Name(dsn)
	c, err := configure(dsn)
	if err != nil {
		return false, fmt.Errorf("open %s: %w", name, err)
	}
	pool, err := pgxpool.NewWithConfig(ctx, c)
	if err != nil {
		return false, fmt.Errorf("open %s: %w", name, err)
	}
	defer pool.Close()
	var version int
	err = pool.QueryRow(ctx, "SELECT version FROM sealift.version").Scan(&version)
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && (pg.Code == "42P01" || pg.Code == "3F000"), errors.Is(err, pgx.ErrNoRows):
		// undefined_table, invalid_schema_name: Open says what it makes of that.
		return false, nil
	case err != nil:
		return false, fmt.Errorf("open %s: read the version of the tables: %w", name, err)
	}
	return version < len(migrations), nil
}
