package server

import "github.com/sealift/sealift/attest/audit"

// Teller is a Store that tells its own process what it appends to the decision log.
type Teller interface {
	Store

	// Tell has the entries that are appended through this Store from now on put into
	// tail, nil for none any more: all of a commit that succeeded, once it is
	// durable and before the call that made it returns, in the order of the log.
	//
	// No entry is put there of a commit that failed or of which it is not known, nor
	// one that another Store on the same state appended, nor of Archive.Load.
	Tell(tail *audit.Tail)
}
