package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// Earlier reports whether Open would bring the database at path to our schema
// version, and so take it from a service of an earlier version that runs on it.
// It changes nothing.
func Earlier(ctx context.Context, path string) (_ bool, err error) {
	db, err := sql.Open("sqlite", dsn(path, "query_only(1)"))
	if err != nil {
		return false, fmt.Errorf("open database %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	var app, version int64
	if err := db.QueryRowContext(ctx, "PRAGMA application_id").Scan(&app); err != nil {
		return false, fmt.Errorf("open database %s: %w", path, err)
	}
	if err := db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return false, fmt.Errorf("open database %s: %w", path, err)
	}
	return app == applicationID && version < schemaVersion, nil
}
