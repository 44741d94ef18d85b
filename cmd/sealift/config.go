package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/token"

	"github.com/sealift/sealift/cmd/sealift/internal/cluster"
	"github.com/sealift/sealift/cmd/sealift/internal/kek"
	"github.com/sealift/sealift/cmd/sealift/internal/pgstore"
)

// serveConfig is the configuration file of `sealift serve`. Relative paths are
// relative to the file. A section that is left out is a service not run;
// node, operator, keys, kek, store, images and tpm are always needed.
type serveConfig struct {
	Keys    string        `yaml:"keys"`    // key directory of `sealift keys init`
	KEK     kekConfig     `yaml:"kek"`     // what disk keys are stored under; there is no default
	Release releaseConfig `yaml:"release"` // optional: of release keys that were changed
	Store   string        `yaml:"store"`   // file of a SQLite database, made if missing, or DSN of a PostgreSQL database (postgres://...)
	// Witness is a file in which this replica keeps where it saw the audit log end.
	// It is made if missing, and of no use in the database. Optional.
	Witness string   `yaml:"witness"`
	Images  []string `yaml:"images"` // output directories of `sealift image build`; their signed manifests are the reference values

	Node     listenConfig   `yaml:"node"`     // API for agents
	Operator operatorConfig `yaml:"operator"` // API for people, by client certificate or token
	Monitor  *monitorConfig `yaml:"monitor"`  // optional: metrics and health
	Limits   limitsConfig   `yaml:"limits"`   // optional

	TPM       tpmConfig        `yaml:"tpm"`
	Firmware  firmwareConfig   `yaml:"firmware"`
	Policy    *policyConfig    `yaml:"policy"`    // optional: without it all images, and all firmware of the catalogue, may run
	Cluster   *clusterConfig   `yaml:"cluster"`   // optional: without it no join tokens are minted
	Provision *provisionConfig `yaml:"provision"` // optional: DHCP, TFTP and HTTP boot

	Reports       reportsConfig   `yaml:"reports"`       // optional: of running systems
	Retention     retentionConfig `yaml:"retention"`     // optional: without it everything is kept
	Webhooks      []webhookConfig `yaml:"webhooks"`      // optional
	IgnoreSerials []string        `yaml:"ignoreSerials"` // optional: serial numbers that many machines have
}

type listenConfig struct {
	Listen string   `yaml:"listen"` // address:port
	Hosts  []string `yaml:"hosts"`  // names and IP addresses in the server certificate
	// Proxies are the networks of load balancers that begin their connections
	// with a header of the PROXY protocol. Optional.
	Proxies []netip.Prefix `yaml:"proxies"`
}

type firmwareConfig struct {
	Catalogue string `yaml:"catalogue"`
}

// policyConfig says which policy to enable. Exactly one of file and off is set.
type policyConfig struct {
	File     string `yaml:"file"`     // with the signature of the image key beside it
	Unsigned bool   `yaml:"unsigned"` // enable a file that has no signature; one that was altered is refused all the same
	// Rollback lets the service go back to this version, or to a policy of
	// another name, for this reason.
	Rollback *policyRollback `yaml:"rollback"`
	Off      string          `yaml:"off"` // why a service that had a policy is to have none
	// Floor is the policy below which this replica releases nothing, whatever the
	// store says. Optional.
	Floor *policyFloor `yaml:"floor"`
}

type policyFloor struct {
	Name    string `yaml:"name"`
	Version int    `yaml:"version"`
}

type policyRollback struct {
	To     int    `yaml:"to"`
	Reason string `yaml:"reason"`
}

type clusterConfig struct {
	// Distro of the cluster's servers: kubernetes (also if left out: kubeadm and
	// every other that signs node certificates through the API), k3s, rke2 or
	// k0s. It must be that of the images.
	Distro     cluster.Distro `yaml:"distro"`
	Kubeconfig string         `yaml:"kubeconfig"`
	// Server is the API server's URL as nodes reach it; that of the kubeconfig if
	// left out.
	Server      string `yaml:"server"`
	DeleteNodes bool   `yaml:"deleteNodes"` // of machines that are locked out; otherwise they are cordoned
}

type provisionConfig struct {
	Interface string       `yaml:"interface"`
	Address   netip.Prefix `yaml:"address"` // of the interface
	First     netip.Addr   `yaml:"first"`   // of the addresses to lease
	Last      netip.Addr   `yaml:"last"`
	State     string       `yaml:"state"` // directory for leases and hosts
	Image     string       `yaml:"image"` // name of the image to install; the only one if left out
}

// keywordDSN matches libpq's other form of a DSN, "host=... password=...".
var keywordDSN = regexp.MustCompile(`^\s*(host|hostaddr|port|dbname|user|password|passfile|service|sslmode)\s*=`)

// readServeConfig reads and checks a configuration file. What is wrong in it is
// the caller's.
func readServeConfig(file string) (*serveConfig, error) {
	b, err := readFile(file, maxSmall)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	var c serveConfig
	d := yaml.NewDecoder(bytes.NewReader(b), yaml.DisallowUnknownField())
	if err := d.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return nil, withHint(usage{fmt.Errorf("read configuration: %s", yamlFault(file, err))}, "sealift serve --help shows a whole configuration")
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, usage{fmt.Errorf("read configuration %s: it holds more than one document", file)}
	}
	dir := filepath.Dir(file)
	at := func(p *string) {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	at(&c.Keys)
	at(&c.KEK.File)
	at(&c.KEK.Wrapped)
	for i := range c.KEK.Former {
		at(&c.KEK.Former[i].File)
		at(&c.KEK.Former[i].Wrapped)
	}
	for i := range c.Release.Former {
		at(&c.Release.Former[i])
	}
	if !pgstore.IsDSN(c.Store) {
		// As the name of a file it would be a new, empty store, and a password in it
		// would be in the log.
		if strings.Contains(c.Store, "://") || keywordDSN.MatchString(c.Store) {
			return nil, withHint(usage{fmt.Errorf("configuration %s: store is neither a file nor a DSN of the form postgres://user@host/database", file)},
				"docs/store.md has the form of a DSN")
		}
		at(&c.Store)
	}
	at(&c.Witness)
	at(&c.Firmware.Catalogue)
	if c.Policy != nil {
		at(&c.Policy.File)
	}
	at(&c.Operator.Revoked)
	if c.Operator.OIDC != nil {
		at(&c.Operator.OIDC.CA)
	}
	for i := range c.Images {
		at(&c.Images[i])
	}
	c.TPM.resolve(at)
	if c.Cluster != nil {
		if c.Cluster.Distro == "" {
			c.Cluster.Distro = cluster.Kubernetes
		}
		at(&c.Cluster.Kubeconfig)
	}
	if c.Provision != nil {
		at(&c.Provision.State)
	}
	for i := range c.Webhooks {
		at(&c.Webhooks[i].SecretFile)
		at(&c.Webhooks[i].CA)
	}
	if err := c.check(); err != nil {
		return nil, withHint(usage{fmt.Errorf("configuration %s: %w", file, err)}, "sealift serve --help shows a whole configuration")
	}
	return &c, nil
}

// yamlFault says where a file is not what it should be, as file:line:column.
func yamlFault(file string, err error) string {
	var fault interface {
		GetToken() *token.Token
		GetMessage() string
	}
	if !errors.As(err, &fault) || fault.GetToken() == nil || fault.GetToken().Position == nil {
		return fmt.Sprintf("%s: %s", file, strings.TrimSpace(yaml.FormatError(err, false, false)))
	}
	at, text := fault.GetToken().Position, fault.GetMessage()
	var other *yaml.TypeError
	if errors.As(err, &other) && other.DstType != nil && other.SrcType != nil {
		text = fmt.Sprintf("got %s, want %s", yamlKind(other.SrcType), yamlKind(other.DstType))
	}
	return fmt.Sprintf("%s:%d:%d: %s", file, at.Line, at.Column, text)
}

// yamlKind names what a value is, or should be, in the words of a file.
func yamlKind(t reflect.Type) string {
	switch kind := t.Kind(); {
	case t == reflect.TypeFor[time.Duration]():
		return "a time such as 50ms, 10m or 1h"
	case kind == reflect.String:
		return "a text"
	case kind == reflect.Bool:
		return "true or false"
	case kind >= reflect.Int && kind <= reflect.Float64:
		return "a number"
	case kind == reflect.Slice || kind == reflect.Array:
		return "a list"
	case kind == reflect.Map || kind == reflect.Struct:
		return "a section with settings of its own"
	case kind == reflect.Pointer:
		return yamlKind(t.Elem())
	}
	return t.String()
}

// check names every setting that is missing, or else the first that cannot be.
func (c *serveConfig) check() error {
	var missing []string
	need := func(field string, given bool) {
		if !given {
			missing = append(missing, field)
		}
	}
	need("keys", c.Keys != "")
	need("kek", c.KEK.present() != kek.Source{})
	need("store", c.Store != "")
	need("images", len(c.Images) > 0)
	need("node.listen", c.Node.Listen != "")
	need("node.hosts", len(c.Node.Hosts) > 0)
	need("operator.listen", c.Operator.Listen != "")
	need("operator.hosts", len(c.Operator.Hosts) > 0)
	c.TPM.need(need)
	need("firmware.catalogue", c.Firmware.Catalogue != "")
	if p := c.Policy; p != nil {
		need("policy.file", p.File != "" && p.Off == "" || p.File == "" && (p.Off != "") != (p.Floor != nil))
		need("policy.floor.name", p.Floor == nil || p.Floor.Name != "")
		need("policy.floor.version", p.Floor == nil || p.Floor.Version > 0)
		need("policy.rollback.to", p.Rollback == nil || p.Rollback.To > 0)
		need("policy.rollback.reason", p.Rollback == nil || p.Rollback.Reason != "")
	}
	if c.Cluster != nil {
		need("cluster.kubeconfig", c.Cluster.Kubeconfig != "")
	}
	for i, w := range c.Webhooks {
		need(fmt.Sprintf("webhooks[%d].url", i), w.URL != "")
		need(fmt.Sprintf("webhooks[%d].secretFile", i), w.SecretFile != "")
	}
	if p := c.Provision; p != nil {
		need("provision.interface", p.Interface != "")
		need("provision.address", p.Address.IsValid())
		need("provision.first", p.First.IsValid())
		need("provision.last", p.Last.IsValid())
		need("provision.state", p.State != "")
	}
	if len(missing) > 0 {
		return fmt.Errorf("settings are missing or empty: %s", strings.Join(missing, ", "))
	}
	if err := c.KEK.check(); err != nil {
		return err
	}
	if err := c.Release.check(); err != nil {
		return err
	}
	return c.checkValues()
}

func (c *serveConfig) checkValues() error {
	if _, err := c.Reports.value(); err != nil {
		return err
	}
	for _, l := range []struct{ field, listen string }{{"node.listen", c.Node.Listen}, {"operator.listen", c.Operator.Listen}} {
		if _, port, err := net.SplitHostPort(l.listen); err != nil || port == "" {
			return fmt.Errorf("%s is %q, want address:port", l.field, l.listen)
		}
	}
	if c.Node.Listen == c.Operator.Listen && !strings.HasSuffix(c.Node.Listen, ":0") {
		return fmt.Errorf("node.listen and operator.listen are both %s: nodes and operators have separate listeners", c.Node.Listen)
	}
	if err := c.TPM.check(); err != nil {
		return err
	}
	if k := c.Cluster; k != nil {
		if !slices.Contains(cluster.Distros(), k.Distro) {
			return fmt.Errorf("cluster.distro is %q, want one of %q", k.Distro, cluster.Distros())
		}
		if k.Server != "" && !strings.HasPrefix(k.Server, "https://") {
			return fmt.Errorf("cluster.server is %q, want https://host[:port]", k.Server)
		}
	}
	if p := c.Provision; p != nil {
		subnet := p.Address.Masked()
		switch {
		case !p.Address.Addr().Is4():
			return fmt.Errorf("provision.address is %s, want the IPv4 address of the interface with its prefix length", p.Address)
		case !subnet.Contains(p.First) || !subnet.Contains(p.Last) || p.Last.Less(p.First):
			return fmt.Errorf("provision: the range %s to %s does not lie in %s", p.First, p.Last, subnet)
		}
	}
	return c.checkService()
}
