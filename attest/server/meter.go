package server

import (
	"time"

	"github.com/sealift/sealift/attest"
)

// The two APIs, as a Meter and the log name them.
const (
	apiNodes     = "node"
	apiOperators = "operator"
)

// A Meter counts what the service does. Its methods are called by many
// goroutines, on the way of every request: they return at once. Every string
// that it is given is one of a few; none comes from a peer.
type Meter interface {
	// Request: an API answered a request with a status. route is the pattern
	// that served it, or "none".
	Request(api, route string, status int, took time.Duration)
	// Verdict: evidence was answered with this result.
	Verdict(r *attest.Result)
	// Limited: a limit of an API refused a request or a connection.
	Limited(api, limit string)
}

// unmetered is the Meter of a service that has none.
type unmetered struct{}

func (unmetered) Request(string, string, int, time.Duration) {}
func (unmetered) Verdict(*attest.Result)                     {}
func (unmetered) Limited(string, string)                     {}

// Names of the limits that refuse, for the Meter.
const (
	limitAddress            = "address"                // requests of one address
	limitEK                 = "endorsement-key"        // challenges of one endorsement key
	limitProvenEK           = "proven-endorsement-key" // evidence of one endorsement key, from all addresses
	limitOperator           = "operator"               // requests of one operator
	limitConcurrent         = "concurrent"             // requests worked on at once
	limitBodies             = "bodies"                 // node requests that are let in, and large bodies
	limitSlow               = "slow"                   // node requests that came slowly while others waited for their room
	limitHandshake          = "handshake"              // TLS handshakes that were slow while others waited for their turn
	limitDraining           = "draining"               // node requests that begin while the service ends
	limitConnections        = "connections"            // connections of an API
	limitAddressConnections = "address-connections"    // connections of one address
	limitNetworkConnections = "network-connections"    // connections of one network, see shareOfFree
	limitEvicted            = "evicted"                // connections that were closed for others, see crowd
	limitProxyHeader        = "proxy-header"           // connections of proxies that did not say whose they are
)
