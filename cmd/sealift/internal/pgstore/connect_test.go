package pgstore

import (
	"testing"

	"github.com/sealift/sealift/cmd/sealift/internal/pgtest"
)

func TestOnlyThisMachineIsReachedWithoutAVerifiedCertificate(t *testing.T) {
	for dsn, ok := range map[string]bool{
		"postgres://u@localhost/d?sslmode=disable":                   true,
		"postgres://u@127.0.0.1/d?sslmode=disable":                   true,
		"postgres://u@127.1.2.3/d?sslmode=require":                   true,
		"postgres://u@[::1]/d?sslmode=disable":                       true,
		"postgres:///d?host=/run/postgresql":                         true,
		"postgres:///d?host=@abstract&sslmode=disable":               true,
		"postgres://u@db.example/d?sslmode=verify-full":              true,
		"postgres://u@db.example/d?sslmode=verify-ca":                false,
		"postgres://u@db.example/d?sslmode=require":                  false,
		"postgres://u@db.example/d?sslmode=prefer":                   false,
		"postgres://u@db.example/d?sslmode=disable":                  false,
		"postgres://u@db.example/d":                                  false,
		"postgres://u@10.0.0.1/d?sslmode=disable":                    false,
		"postgres://u@[::ffff:10.0.0.1]/d?sslmode=disable":           false,
		"postgres://u@localhost.example/d?sslmode=disable":           false,
		"postgres://u@localhost,db.example/d?sslmode=disable":        false,
		"postgres://u@db1.example,db2.example/d?sslmode=verify-full": true,
	} {
		if _, err := configure(dsn); (err == nil) != ok {
			t.Errorf("%s: %v", dsn, err)
		}
	}
}

// A replica that is frozen or cut off must not keep the others from the log, and
// no name is looked up where another may have put a function of that name.
func TestEachConnectionHasItsLimits(t *testing.T) {
	s := open(t, pgtest.Start(t).Database(t))
	for name, want := range map[string]string{
		"search_path": "pg_catalog", "default_transaction_isolation": "read committed", "statement_timeout": "20s", "lock_timeout": "10s",
		"idle_in_transaction_session_timeout": "10s", "client_connection_check_interval": "5s", "application_name": "sealift", "synchronous_commit": "on",
	} {
		var got string
		if err := s.pool.QueryRow(t.Context(), "SELECT current_setting($1)", name).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %q", name, got, err, want)
		}
	}
}
