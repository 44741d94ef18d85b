package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/papertpm"
)

func readTPMConfig(t *testing.T, text string) tpmConfig {
	t.Helper()
	var c tpmConfig
	if err := yaml.UnmarshalWithOptions([]byte(text), &c, yaml.DisallowUnknownField()); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTPMSettingsBecomeAPolicy(t *testing.T) {
	ca, err := papertpm.NewCA(time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Certify(key.Public(), nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, b := range map[string][]byte{
		"root.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Root.Raw}), "certs/box-1.der": cert.Raw,
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := readTPMConfig(t, `
allowed: [hardware]
vendors: true
roots: [{class: hardware, file: root.pem, vendors: [PAPR, "id:49465800"]}]
certificates: certs
allowExpired: true
bank: sha384
denied: [{vendor: IFX, from: "0x0007000000000000", to: "0x0007003d00000000", reason: CVE-2017-15361}]
`)
	c.resolve(func(p *string) {
		if *p != "" {
			*p = filepath.Join(dir, *p)
		}
	})
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	p, err := c.policy()
	if err != nil {
		t.Fatal(err)
	}
	id := attest.MachineIDOf(cert.RawSubjectPublicKeyInfo)
	own := p.Roots[len(p.Roots)-1]
	ifx := attest.TPMVendor(0x49465800)
	if len(p.Roots) < 2 || !own.Certificate.Equal(ca.Root) || own.Vendors[1] != ifx || !p.AllowExpired || !cert.Equal(p.Imported[id]) {
		t.Errorf("policy is %+v", p)
	}
	if want := (attest.TPMDenial{Vendor: ifx, From: 0x0007000000000000, To: 0x0007003d00000000, Reason: "CVE-2017-15361"}); len(p.Denied) != 1 || p.Denied[0] != want {
		t.Errorf("denied is %+v, want %+v", p.Denied, want)
	}

	// Whatever is decided by is in the policy's name.
	digest := func(change func(*attest.TPMPolicy), bank string) string {
		q := p
		if change != nil {
			change(&q)
		}
		d, err := digestTPMPolicy(&q, bank)
		if err != nil {
			t.Fatal(err)
		}
		return d.String()
	}
	none := func(*attest.TPMPolicy) {}
	base := digest(none, "sha384")
	if base != digest(none, "sha384") {
		t.Error("the same policy has two digests")
	}
	for name, d := range map[string]string{
		"another bank": digest(none, ""),
		"expired":      digest(func(p *attest.TPMPolicy) { p.AllowExpired = false }, "sha384"),
		"denied":       digest(func(p *attest.TPMPolicy) { p.Denied = nil }, "sha384"),
		"required":     digest(func(p *attest.TPMPolicy) { p.RequireRevocation = true }, "sha384"),
		"banks":        digest(func(p *attest.TPMPolicy) { p.ProveBanks = true }, "sha384"),
		"asks":         digest(func(p *attest.TPMPolicy) { p.AskBanks = true }, "sha384"),
		"exempt":       digest(func(p *attest.TPMPolicy) { p.BankExemptions = []attest.TPMRule{{Vendor: 1}} }, "sha384"),
		"without":      digest(func(p *attest.TPMPolicy) { p.WithoutSHA256 = []attest.TPMRule{{Vendor: 1}} }, "sha384"),
		"roots":        digest(func(p *attest.TPMPolicy) { p.Roots = p.Roots[1:] }, "sha384"),
		"vendors": digest(func(p *attest.TPMPolicy) {
			p.Roots = append([]attest.TPMRoot{}, p.Roots...)
			p.Roots[0].Vendors = nil
		}, "sha384"),
	} {
		if d == base {
			t.Errorf("%s: the digest is the same", name)
		}
	}
}

func TestTPMSettingsThatCannotBe(t *testing.T) {
	for text, says := range map[string]string{
		`{allowed: [hardware], vendors: true, bank: sha1}`:                                                      "tpm.bank",
		`{allowed: [magic], vendors: true}`:                                                                     "magic",
		`{allowed: [hardware], roots: [{class: soft, file: a}]}`:                                                "soft",
		`{allowed: [hardware], vendors: true, denied: [{vendor: IFX, from: 7.61, reason: r}]}`:                  "tpm.denied[0].from",
		`{allowed: [hardware], vendors: true, denied: [{vendor: IFX, from: "0x2", to: "0x1", reason: reason}]}`: "below from",
	} {
		c := readTPMConfig(t, text)
		if err := c.check(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v, want an error that says %q", text, err, says)
		}
	}
	var missing []string
	c := readTPMConfig(t, `{requireRevocationLists: true, denied: [{}]}`)
	c.need(func(field string, given bool) {
		if !given {
			missing = append(missing, field)
		}
	})
	if got := strings.Join(missing, " "); got != "tpm.allowed tpm.roots tpm.denied[0].vendor tpm.denied[0].reason tpm.revocationLists" {
		t.Errorf("missing are %s", got)
	}
	for _, text := range []string{`{store: none}`, `{certificates: none}`, `{revocationLists: none}`, `{roots: [{file: none}]}`} {
		c := readTPMConfig(t, text)
		c.resolve(func(p *string) {
			if *p != "" {
				*p = filepath.Join(t.TempDir(), *p)
			}
		})
		if _, err := c.policy(); err == nil {
			t.Errorf("%s: no error", text)
		}
	}
}
