package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/oidc"
)

// operatorConfig is the listener for people.
type operatorConfig struct {
	Listen  string         `yaml:"listen"`  // address:port
	Hosts   []string       `yaml:"hosts"`   // names and IP addresses in the server certificate
	Proxies []netip.Prefix `yaml:"proxies"` // optional: as of the node API
	Revoked string         `yaml:"revoked"` // optional: list of revoked certificates; operators.crl in the key directory if left out
	OIDC    *oidcConfig    `yaml:"oidc"`    // optional: without it operators need a certificate
	// People are those with several names. Optional.
	People []personConfig `yaml:"people"`
}

// personConfig says which names are one person's, see server.Person.
type personConfig struct {
	Name         string   `yaml:"name"`
	Certificates []string `yaml:"certificates"`
	Tokens       []string `yaml:"tokens"`
}

// people are those of the configuration.
func (c *operatorConfig) people() []server.Person {
	var all []server.Person
	for _, p := range c.People {
		all = append(all, server.Person(p))
	}
	return all
}

// oidcConfig says whose tokens name operators, see oidc.Config.
type oidcConfig struct {
	Issuer      string                `yaml:"issuer"`
	Audience    string                `yaml:"audience"`
	CA          string                `yaml:"ca"` // PEM; optional: the system's roots
	NameClaim   string                `yaml:"nameClaim"`
	RolesClaim  string                `yaml:"rolesClaim"`
	GroupsClaim string                `yaml:"groupsClaim"`
	Groups      map[string][]api.Role `yaml:"groups"`
	Algorithms  []string              `yaml:"algorithms"`
	Skew        time.Duration         `yaml:"skew"`
}

// monitorConfig is the listener for monitoring.
type monitorConfig struct {
	Listen  string         `yaml:"listen"`  // address:port; 127.0.0.1:9464 if left out
	Hosts   []string       `yaml:"hosts"`   // optional: with names there is TLS, and /metrics is for operators
	Proxies []netip.Prefix `yaml:"proxies"` // optional: as of the node API
	Plain   bool           `yaml:"plain"`   // plain HTTP on an address that is not loopback
}

// defaultMonitor is where monitoring listens if nothing is said.
const defaultMonitor = "127.0.0.1:9464"

// limitsConfig changes server.Limits, of which each setting has the meaning,
// default and name. What is left out or zero has its default.
type limitsConfig struct {
	PerAddress           time.Duration `yaml:"perAddress"`
	AddressBurst         int           `yaml:"addressBurst"`
	PerEK                time.Duration `yaml:"perEK"`
	EKBurst              int           `yaml:"ekBurst"`
	OperatorPerAddress   time.Duration `yaml:"operatorPerAddress"`
	OperatorAddressBurst int           `yaml:"operatorAddressBurst"`
	PerOperator          time.Duration `yaml:"perOperator"`
	OperatorBurst        int           `yaml:"operatorBurst"`
	Connections          int           `yaml:"connections"`
	AddressConnections   int           `yaml:"addressConnections"`
	Concurrent           int           `yaml:"concurrent"`
	Queue                time.Duration `yaml:"queue"`
	MaxPending           int           `yaml:"maxPending"`
	Mint                 time.Duration `yaml:"mint"`
	Drain                time.Duration `yaml:"drain"`
	Grace                time.Duration `yaml:"grace"` // how long requests are still taken after SIGTERM; not a server.Limits
}

func (l limitsConfig) server() server.Limits {
	return server.Limits{
		PerAddress: l.PerAddress, AddressBurst: l.AddressBurst, PerEK: l.PerEK, EKBurst: l.EKBurst,
		OperatorPerAddress: l.OperatorPerAddress, OperatorAddressBurst: l.OperatorAddressBurst,
		PerOperator: l.PerOperator, OperatorBurst: l.OperatorBurst,
		Connections: l.Connections, AddressConnections: l.AddressConnections, Concurrent: l.Concurrent, Queue: l.Queue,
		MaxPending: l.MaxPending, Mint: l.Mint, Drain: l.Drain,
	}
}

// check refuses what is no limit.
func (l limitsConfig) check() error {
	for name, d := range map[string]time.Duration{
		"perAddress": l.PerAddress, "perEK": l.PerEK, "operatorPerAddress": l.OperatorPerAddress, "perOperator": l.PerOperator,
		"queue": l.Queue, "mint": l.Mint, "drain": l.Drain, "grace": l.Grace,
	} {
		if d < 0 || d > time.Hour {
			return fmt.Errorf("limits.%s is %v, want 0 to 1h", name, d)
		}
	}
	for name, n := range map[string]int{
		"addressBurst": l.AddressBurst, "ekBurst": l.EKBurst, "operatorAddressBurst": l.OperatorAddressBurst, "operatorBurst": l.OperatorBurst,
		"connections": l.Connections, "addressConnections": l.AddressConnections, "concurrent": l.Concurrent, "maxPending": l.MaxPending,
	} {
		if n < 0 || n > 10_000_000 {
			return fmt.Errorf("limits.%s is %d, want 0 to 10000000", name, n)
		}
	}
	return nil
}

// checkService checks the sections of this file.
func (c *serveConfig) checkService() error {
	if o := c.Operator.OIDC; o != nil {
		if _, err := o.authenticator(nil, time.Now); err != nil {
			return fmt.Errorf("operator.oidc: %w", err)
		}
	}
	if err := server.CheckPeople(c.Operator.people()); err != nil {
		return fmt.Errorf("operator.%w", err)
	}
	if m := c.Monitor; m != nil {
		if m.Listen == "" {
			m.Listen = defaultMonitor
		}
		host, port, err := net.SplitHostPort(m.Listen)
		if err != nil || port == "" {
			return fmt.Errorf("monitor.listen is %q, want address:port", m.Listen)
		}
		ip, err := netip.ParseAddr(host)
		if loopback := err == nil && ip.IsLoopback() || host == "localhost"; !loopback && len(m.Hosts) == 0 && !m.Plain {
			return fmt.Errorf("monitor.listen is %s, which others reach: give monitor.hosts for TLS with client certificates, or say monitor.plain: true", m.Listen)
		}
		if len(m.Hosts) > 0 && m.Plain {
			return errors.New("monitor.hosts is for TLS and monitor.plain for none: give one of them")
		}
	}
	for field, networks := range map[string][]netip.Prefix{"node": c.Node.Proxies, "operator": c.Operator.Proxies, "monitor": c.monitorProxies()} {
		for _, n := range networks {
			if n.Bits() == 0 || n.Addr().Is4In6() {
				return fmt.Errorf("%s.proxies has %s: want the networks of the load balancers alone, since whoever is in them can name any address as the peer's", field, n)
			}
		}
	}
	return c.Limits.check()
}

func (c *serveConfig) monitorProxies() []netip.Prefix {
	if c.Monitor == nil {
		return nil
	}
	return c.Monitor.Proxies
}

// authenticator makes an authenticator with the roots of ca, or else the
// system's.
func (c *oidcConfig) authenticator(ca *x509.CertPool, clock func() time.Time) (*oidc.Authenticator, error) {
	return oidc.New(oidc.Config{
		Issuer: c.Issuer, Audience: c.Audience, CA: ca, NameClaim: c.NameClaim, RolesClaim: c.RolesClaim,
		GroupsClaim: c.GroupsClaim, Groups: c.Groups, Algorithms: c.Algorithms, Skew: c.Skew, Clock: clock,
	})
}

// pool reads the roots that the issuer's certificate must lead to.
func (c *oidcConfig) pool() (*x509.CertPool, error) {
	if c.CA == "" {
		return nil, nil
	}
	b, err := readFile(c.CA, maxSmall)
	if err != nil {
		return nil, fmt.Errorf("operator.oidc.ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("operator.oidc.ca: %s holds no certificate", c.CA)
	}
	return pool, nil
}

// monitorTLS returns the TLS configuration of the monitoring listener: anybody
// may ask for the health, as an orchestrator without a certificate must.
func monitorTLS(crt tls.Certificate, operators *x509.CertPool) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{crt}, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"},
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: operators,
	}
}
