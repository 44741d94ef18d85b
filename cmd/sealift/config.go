package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/sealift/sealift/attest"
)

// serveConfig is the configuration file of `sealift serve`. Relative paths are
// relative to the file. A section that is left out is a service not run;
// node, operator, keys, store, images and tpm are always needed.
type serveConfig struct {
	Keys   string   `yaml:"keys"`   // key directory of `sealift keys init`
	Store  string   `yaml:"store"`  // SQLite database, made if missing
	Images []string `yaml:"images"` // output directories of `sealift image build`; their signed manifests are the reference values

	Node     listenConfig `yaml:"node"`     // API for agents
	Operator listenConfig `yaml:"operator"` // API for people, by client certificate

	TPM       tpmConfig        `yaml:"tpm"`
	Firmware  firmwareConfig   `yaml:"firmware"`
	Cluster   *clusterConfig   `yaml:"cluster"`   // optional: without it no join tokens are minted
	Provision *provisionConfig `yaml:"provision"` // optional: DHCP, TFTP and HTTP boot
}

type listenConfig struct {
	Listen string   `yaml:"listen"` // address:port
	Hosts  []string `yaml:"hosts"`  // names and IP addresses in the server certificate
}

type tpmConfig struct {
	Allowed []attest.TPMClass `yaml:"allowed"` // hardware, firmware, virtual, software
	Roots   []rootConfig      `yaml:"roots"`
}

type rootConfig struct {
	Class        attest.TPMClass `yaml:"class"`
	File         string          `yaml:"file"` // PEM
	Intermediate bool            `yaml:"intermediate"`
}

type firmwareConfig struct {
	Catalogue string `yaml:"catalogue"`
}

type clusterConfig struct {
	Kubeconfig string `yaml:"kubeconfig"`
}

type provisionConfig struct {
	Interface string       `yaml:"interface"`
	Address   netip.Prefix `yaml:"address"` // of the interface
	First     netip.Addr   `yaml:"first"`   // of the addresses to lease
	Last      netip.Addr   `yaml:"last"`
	State     string       `yaml:"state"` // directory for leases and hosts
	Image     string       `yaml:"image"` // name of the image to install; the only one if left out
}

// readServeConfig reads and checks a configuration file.
func readServeConfig(file string) (*serveConfig, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	var c serveConfig
	if err := yaml.NewDecoder(bytes.NewReader(b), yaml.DisallowUnknownField()).Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read configuration %s: %s", file, strings.TrimSpace(yaml.FormatError(err, false, true)))
	}
	dir := filepath.Dir(file)
	at := func(p *string) {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	at(&c.Keys)
	at(&c.Store)
	at(&c.Firmware.Catalogue)
	for i := range c.Images {
		at(&c.Images[i])
	}
	for i := range c.TPM.Roots {
		at(&c.TPM.Roots[i].File)
	}
	if c.Cluster != nil {
		at(&c.Cluster.Kubeconfig)
	}
	if c.Provision != nil {
		at(&c.Provision.State)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", file, err)
	}
	return &c, nil
}

// check names the first setting that is missing or cannot be.
func (c *serveConfig) check() error {
	for _, need := range []struct{ field, value string }{
		{"keys", c.Keys}, {"store", c.Store}, {"node.listen", c.Node.Listen}, {"operator.listen", c.Operator.Listen},
		{"firmware.catalogue", c.Firmware.Catalogue},
	} {
		if need.value == "" {
			return fmt.Errorf("%s is missing", need.field)
		}
	}
	switch {
	case len(c.Images) == 0:
		return errors.New("images is empty, so every machine would be refused")
	case len(c.TPM.Allowed) == 0:
		return errors.New("tpm.allowed is empty, so every machine would be refused")
	case len(c.TPM.Roots) == 0:
		return errors.New("tpm.roots is empty, so every machine would be refused")
	case c.Node.Listen == c.Operator.Listen:
		return fmt.Errorf("node.listen and operator.listen are both %s: nodes and operators have separate listeners", c.Node.Listen)
	case len(c.Node.Hosts) == 0 || len(c.Operator.Hosts) == 0:
		return errors.New("node.hosts or operator.hosts is empty: the server certificates need names or addresses")
	}
	for _, class := range c.TPM.Allowed {
		if !knownClass(class) {
			return fmt.Errorf("tpm.allowed: unknown class %q, want hardware, firmware, virtual or software", class)
		}
	}
	for _, r := range c.TPM.Roots {
		if !knownClass(r.Class) || r.File == "" {
			return fmt.Errorf("tpm.roots: class %q, file %q: want a class of hardware, firmware, virtual or software, and a file", r.Class, r.File)
		}
	}
	if c.Cluster != nil && c.Cluster.Kubeconfig == "" {
		return errors.New("cluster.kubeconfig is missing")
	}
	if p := c.Provision; p != nil {
		switch {
		case p.Interface == "" || p.State == "":
			return errors.New("provision.interface or provision.state is missing")
		case !p.Address.IsValid() || !p.Address.Addr().Is4():
			return fmt.Errorf("provision.address is %q, want the IPv4 address of the interface with its prefix length", p.Address)
		case !p.Address.Masked().Contains(p.First) || !p.Address.Masked().Contains(p.Last) || p.Last.Less(p.First):
			return fmt.Errorf("provision: the range %s to %s does not lie in %s", p.First, p.Last, p.Address.Masked())
		}
	}
	return nil
}

func knownClass(c attest.TPMClass) bool {
	switch c {
	case attest.TPMHardware, attest.TPMFirmware, attest.TPMVirtual, attest.TPMSoftware:
		return true
	}
	return false
}

// policy reads the trusted roots of endorsement certificates.
func (c *tpmConfig) policy() (attest.TPMPolicy, error) {
	p := attest.TPMPolicy{Allowed: c.Allowed}
	for _, r := range c.Roots {
		b, err := os.ReadFile(r.File)
		if err != nil {
			return p, fmt.Errorf("read TPM root: %w", err)
		}
		found := false
		for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
			if block.Type != "CERTIFICATE" {
				continue
			}
			crt, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return p, fmt.Errorf("read TPM root %s: %w", r.File, err)
			}
			p.Roots = append(p.Roots, attest.TPMRoot{Class: r.Class, Certificate: crt, Intermediate: r.Intermediate})
			found = true
		}
		if !found {
			return p, fmt.Errorf("read TPM root %s: no certificate in it", r.File)
		}
	}
	return p, nil
}
