package pgstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sealift/sealift/attest/server"
)

// migrations bring the tables from each version to the next: the first makes
// version 1 in a schema that is there and empty. They are never changed, only
// added to.
//
// Columns hold what is searched or must be unique; the rest of a record is its
// JSON in body. What peers can name is bytea: any bytes can be looked for, and
// their order is that of the bytes, whatever the database's encoding and
// collation.
var migrations = []string{`
CREATE TABLE sealift.machine (
	id        bytea PRIMARY KEY,
	revision  bigint NOT NULL,
	state     bytea NOT NULL,
	node_name bytea NOT NULL CONSTRAINT machine_node_name UNIQUE,
	disk_guid bytea CONSTRAINT machine_disk_guid UNIQUE, -- NULL if there is none
	body      bytea NOT NULL
);
CREATE INDEX machine_state ON sealift.machine (state);
CREATE TABLE sealift.challenge (
	id      bytea PRIMARY KEY,
	expires bigint NOT NULL, -- Unix nanoseconds
	body    bytea NOT NULL
);
CREATE INDEX challenge_expires ON sealift.challenge (expires);
CREATE TABLE sealift.release (
	id            bytea PRIMARY KEY,
	machine       bytea NOT NULL,
	generation    bigint NOT NULL,
	reset_count   bigint NOT NULL,
	restart_count bigint NOT NULL,
	confirmed     boolean NOT NULL,
	body          bytea NOT NULL,
	CONSTRAINT release_boot UNIQUE (machine, generation, reset_count, restart_count)
);
CREATE TABLE sealift.evidence (
	digest bytea PRIMARY KEY, -- SHA-256 of body
	body   bytea NOT NULL
);
CREATE TABLE sealift.document (
	kind     bytea NOT NULL,
	name     bytea NOT NULL,
	revision bigint NOT NULL,
	body     bytea NOT NULL,
	PRIMARY KEY (kind, name)
);
CREATE TABLE sealift.audit (
	seq  bigint PRIMARY KEY,
	line bytea NOT NULL -- as exported, without the newline
);
-- head is the newest entry of audit. Whoever appends locks its one row first.
CREATE TABLE sealift.head (
	one  boolean PRIMARY KEY CHECK (one),
	seq  bigint NOT NULL,
	hash bytea NOT NULL
);
INSERT INTO sealift.head (one, seq, hash) VALUES (true, 0, decode(repeat('00', 32), 'hex'));
`, `
-- Challenges are kept with their connection.
DROP TABLE sealift.challenge;
`, `
-- due is server.Machine.Due as Unix nanoseconds, NULL for never.
ALTER TABLE sealift.machine ADD COLUMN due bigint;
CREATE INDEX machine_due ON sealift.machine (state, due) WHERE due IS NOT NULL;
CREATE INDEX release_open ON sealift.release (machine) WHERE NOT confirmed;
-- Evidence in one piece, as it was before, is read as it is.
CREATE TABLE sealift.evidence_part (
	digest bytea PRIMARY KEY, -- SHA-256 of body
	epoch  bigint NOT NULL,
	body   bytea NOT NULL
);
CREATE INDEX evidence_part_epoch ON sealift.evidence_part (epoch, digest);
-- See evidence.go.
ALTER TABLE sealift.evidence
	ADD COLUMN machine bytea,
	ADD COLUMN received bigint,
	ADD COLUMN epoch bigint NOT NULL DEFAULT 0,
	ADD COLUMN pruned bigint;
CREATE INDEX evidence_received ON sealift.evidence (received, digest) WHERE pruned IS NULL AND received >= 0;
CREATE INDEX evidence_unindexed ON sealift.evidence (digest) WHERE received IS NULL;
CREATE INDEX evidence_epoch ON sealift.evidence (epoch, digest) WHERE pruned IS NULL;
ALTER TABLE sealift.head ADD COLUMN epoch bigint NOT NULL DEFAULT 1;
`, `
-- store names this store. One that was restored is another, whatever its log.
ALTER TABLE sealift.head ADD COLUMN store uuid NOT NULL DEFAULT gen_random_uuid();
`}

// schemaLock is the key of the advisory lock under which tables are made.
const schemaLock = 0x5ea11f70

// migrate brings the tables to our version. Of several replicas that start at
// once one does, and the others wait.
func migrate(ctx context.Context, pool *pgxpool.Pool) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		// Another may take as long as there are records. Ours are limited again
		// then: whoever waits for a table keeps everybody from it.
		if _, err := tx.Exec(ctx, "SELECT set_config('statement_timeout', '0', true), set_config('lock_timeout', '0', true)"); err != nil {
			return fmt.Errorf("wait for another that makes the tables: %w", err)
		}
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(schemaLock)); err != nil {
			return fmt.Errorf("wait for another that makes the tables: %w", err)
		}
		if _, err := tx.Exec(ctx, "SELECT set_config('statement_timeout', $1, true), set_config('lock_timeout', $2, true)", session["statement_timeout"], session["lock_timeout"]); err != nil {
			return fmt.Errorf("wait for another that makes the tables: %w", err)
		}
		var schema, ours bool
		err := tx.QueryRow(ctx, "SELECT to_regnamespace('sealift') IS NOT NULL, to_regclass('sealift.version') IS NOT NULL").Scan(&schema, &ours)
		if err != nil {
			return fmt.Errorf("look for the tables: %w", err)
		}
		if !schema {
			if _, err := tx.Exec(ctx, "CREATE SCHEMA sealift"); err != nil {
				return fmt.Errorf("make the schema: %w", err)
			}
		}
		if !ours {
			// In a schema that holds something, the names may be another's.
			var tables int
			if err := tx.QueryRow(ctx, "SELECT count(*) FROM pg_class WHERE relnamespace = 'sealift'::regnamespace").Scan(&tables); err != nil {
				return fmt.Errorf("look for the tables: %w", err)
			}
			if tables > 0 {
				return errors.New("the schema sealift is not of this program: it has tables, and no version")
			}
			if _, err := tx.Exec(ctx, "CREATE TABLE sealift.version (one boolean PRIMARY KEY CHECK (one), version integer NOT NULL)"); err != nil {
				return fmt.Errorf("make the tables: %w", err)
			}
			if _, err := tx.Exec(ctx, "INSERT INTO sealift.version (one, version) VALUES (true, 0)"); err != nil {
				return fmt.Errorf("make the tables: %w", err)
			}
		}
		var version int
		if err := tx.QueryRow(ctx, "SELECT version FROM sealift.version").Scan(&version); err != nil {
			return fmt.Errorf("read the version of the tables: %w", err)
		}
		if version < 0 || version > len(migrations) {
			return fmt.Errorf("the tables are of version %d, want at most %d: a later program made them", version, len(migrations))
		}
		if version < len(migrations) {
			// It takes as long as there are records. Who writes has this row locked: none
			// is then between having looked at the version and its end.
			if version > 0 {
				if _, err := tx.Exec(ctx, "SELECT seq FROM sealift.head FOR UPDATE"); err != nil {
					return fmt.Errorf("bring the tables to version %d: %w", len(migrations), err)
				}
			}
			if _, err := tx.Exec(ctx, "SELECT set_config('statement_timeout', '0', true)"); err != nil {
				return fmt.Errorf("bring the tables to version %d: %w", len(migrations), err)
			}
		}
		for _, m := range migrations[version:] {
			version++
			if _, err := tx.Exec(ctx, m); err != nil {
				return fmt.Errorf("bring the tables to version %d: %w", version, err)
			}
			if version == 3 {
				if err := fillDue(ctx, tx); err != nil {
					return fmt.Errorf("bring the tables to version %d: %w", version, err)
				}
			}
		}
		if _, err := tx.Exec(ctx, "UPDATE sealift.version SET version = $1 WHERE version <> $1", version); err != nil {
			return fmt.Errorf("bring the tables to version %d: %w", version, err)
		}
		return nil
	})
}

// fillDue sets the column due of all machines. The database need not be able to
// read their JSON.
func fillDue(ctx context.Context, tx pgx.Tx) error {
	for after := []byte{}; ; {
		rows, err := tx.Query(ctx, "SELECT id, body FROM sealift.machine WHERE id > $1 ORDER BY id LIMIT 500", after)
		if err != nil {
			return err
		}
		b := new(pgx.Batch)
		var id, body []byte
		n := 0
		_, err = pgx.ForEachRow(rows, []any{&id, &body}, func() error {
			n, after = n+1, bytes.Clone(id)
			var m server.Machine
			if json.Unmarshal(body, &m) != nil {
				return nil // it is refused, and nothing is due
			}
			if due := dueOf(&m); due != nil {
				b.Queue("UPDATE sealift.machine SET due = $2 WHERE id = $1", after, due)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := tx.SendBatch(ctx, b).Close(); err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
	}
}
