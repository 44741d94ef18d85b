package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/cmd/sealift-agent/internal/boot"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/console"
	"github.com/sealift/sealift/profiles"
)

func TestMain(m *testing.M) {
	if os.Getenv("SEALIFT_TEST_AGENT") != "" {
		main()
	}
	os.Exit(m.Run())
}

func TestOtherInvocationsPrintWhatItIs(t *testing.T) {
	for _, args := range [][]string{nil, {argRun}, {"install"}, {"--help"}} {
		cmd := exec.Command("/proc/self/exe", args...)
		cmd.Env = append(os.Environ(), "SEALIFT_TEST_AGENT=1")
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 || string(out) != usage {
			t.Errorf("%q: got %q, %v", args, out, err)
		}
	}
}

func pemKey(t *testing.T) (ca, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Unix(4e9, 0), IsCA: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))
}

func TestNewService(t *testing.T) {
	ca, key := pemKey(t)
	for name, tt := range map[string]struct {
		ca, key, err string
	}{
		"a CA and a release key are enough":   {ca: ca, key: key},
		"a CA that is no PEM is refused":      {ca: "x", key: key, err: "the attestation CA"},
		"a key in the CA's place is refused":  {ca: key, key: key, err: "the attestation CA"},
		"a release key that is none":          {ca: ca, key: "x", err: "the release key"},
		"a certificate in the key's place is": {ca: ca, key: ca, err: "the release key"},
	} {
		t.Run(name, func(t *testing.T) {
			m := &machine{config: &profiles.AgentConfig{AttestURL: "https://10.0.0.1:8443", AttestCA: tt.ca, ReleaseKey: tt.key}}
			_, err := m.newService()
			if tt.err == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			var h *hinted
			if err == nil || !strings.Contains(err.Error(), tt.err) || !errors.As(err, &h) || h.hint == "" {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestAPanicBecomesAFatalError(t *testing.T) {
	var b bytes.Buffer
	m := &machine{console: console.New(&b, func() time.Duration { return 0 }), log: slog.New(slog.DiscardHandler)}
	_, err := guarded(m, func(*machine) (boot.End, error) { panic("lost") })
	if err == nil || !strings.Contains(err.Error(), "BUG: panic: lost") {
		t.Errorf("got %v", err)
	}
}
