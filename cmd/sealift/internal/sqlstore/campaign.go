package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

// LoadCampaign returns a firmware campaign's JSON and its revision, or
// server.ErrNotFound.
func (s *Store) LoadCampaign(ctx context.Context, name string) (body json.RawMessage, revision int64, err error) {
	err = s.read.QueryRowContext(ctx, "SELECT body, revision FROM campaign WHERE name = ?", name).Scan((*[]byte)(&body), &revision)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, 0, fmt.Errorf("campaign %s: %w", name, server.ErrNotFound)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read campaign %s: %w", name, err)
	}
	return body, revision, nil
}

// SaveCampaign stores a campaign's JSON if the stored revision is the given
// one, 0 for a campaign that is new; otherwise server.ErrConflict. Events are
// appended to the audit log in the same transaction. Durability is that of
// server.Store.
func (s *Store) SaveCampaign(ctx context.Context, name string, body json.RawMessage, revision int64, events ...audit.Event) error {
	err := s.submit(ctx, func(ctx context.Context, tx *sql.Tx) error {
		var err error
		if revision == 0 {
			err = one(server.ErrConflict)(tx.ExecContext(ctx,
				"INSERT INTO campaign (name, revision, body) VALUES (?, 1, ?) ON CONFLICT DO NOTHING", name, []byte(body)))
		} else {
			err = one(server.ErrConflict)(tx.ExecContext(ctx,
				"UPDATE campaign SET revision = revision + 1, body = ? WHERE name = ? AND revision = ?", []byte(body), name, revision))
		}
		if err != nil {
			return err
		}
		return appendAudit(ctx, tx, events)
	})
	if err != nil {
		return fmt.Errorf("store campaign %s: %w", name, err)
	}
	return nil
}

// CampaignNames returns the names of all campaigns in alphabetical order.
func (s *Store) CampaignNames(ctx context.Context) (names []string, err error) {
	rows, err := s.read.QueryContext(ctx, "SELECT name FROM campaign ORDER BY name")
	if err != nil {
		return nil, fmt.Errorf("read campaigns: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, fmt.Errorf("read campaigns: %w", err)
		}
		names = append(names, name)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read campaigns: %w", err)
	}
	return names, nil
}
