package storetest

import (
	"crypto/ecdsa"
	"testing"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
)

// Standing is what the log of a test's store, to which only the test's process writes,
// says of machines.
func Standing(t testing.TB, store server.Store, key *ecdsa.PrivateKey) server.Standing {
	t.Helper()
	o, err := server.NewOwnStanding(store, audit.ReleaseKeys{Present: &key.PublicKey})
	if err != nil {
		t.Fatal(err)
	}
	return o
}
