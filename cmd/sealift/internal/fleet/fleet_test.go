package fleet

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/sign"
)

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// simulated lets a fleet boot against a service in this process. change alters
// the fleet, and fail is asked by every method of the store.
func simulated(t *testing.T, change func(*Config), fail func(method string) (error, bool)) *Report {
	t.Helper()
	c, cl := served(t, fail)
	if change != nil {
		change(&c)
	}
	return run(t, c, cl)
}

// run lets a fleet boot.
func run(t *testing.T, c Config, cl *client.Client) *Report {
	t.Helper()
	f, err := Enrol(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	r, err := f.Run(t.Context(), cl, func(int64, int64) {})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// served starts a service and gives a fleet for it.
func served(t *testing.T, fail func(method string) (error, bool)) (Config, *client.Client) {
	t.Helper()
	signer, err := sign.FromKey(newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "fleet")
	if err := Prepare(t.Context(), dir, signer, time.Now()); err != nil {
		t.Fatal(err)
	}
	files, err := Load(dir, MinLog)
	if err != nil {
		t.Fatal(err)
	}
	store := &storetest.Faulty{Store: new(storetest.Memory), Fail: fail}
	kek := make(attest.Secret, server.KEKSize)
	rand.Read(kek)
	release := newKey(t)
	policy := &attest.Policy{
		ID: "fleet", Images: []*manifest.Manifest{files.Image},
		Firmware: attest.FirmwarePolicy{References: []attest.FirmwareReference{{
			Vendor: "Paper", Product: "Box", Version: "1.0", Digests: []manifest.SHA256{files.Firmware}, Unpinned: 1, Status: attest.FirmwareAllowed,
		}}},
		TPM: attest.TPMPolicy{Roots: []attest.TPMRoot{{Class: attest.TPMSoftware, Certificate: files.CA.Root}}, Allowed: []attest.TPMClass{attest.TPMSoftware}},
	}
	service, err := server.New(server.Config{
		Store: store, Standing: storetest.Standing(t, store.Store, release), KEK: kek, ReleaseKey: release, Log: slog.New(slog.DiscardHandler),
		Policy: func(context.Context, attest.MachineID) (*attest.Policy, error) { return policy, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "service"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	crt, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(crt)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := service.ServeNodes(ctx, ln, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	c := Config{Files: files, Machines: 8, Seed: t.Name(), Open: 4, Again: 1}
	c.Enrol = func(ctx context.Context, rec *api.InstallRecord) error {
		_, err := service.Enrol(ctx, "test", rec)
		return err
	}
	return c, &client.Client{URL: "https://" + ln.Addr().String(), CA: pool, ReleaseKey: &release.PublicKey}
}

func never(string) (error, bool) { return nil, false }

func TestAFleetIsReleasedOnceInEachBoot(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Config){
		"each machine once":       nil,
		"a storm":                 func(c *Config) { c.Storm = true; c.Open = 2 },
		"from several addresses":  func(c *Config) { c.Addresses = 3 },
		"TPMs that take a moment": func(c *Config) { c.TPMTime = time.Millisecond; c.Open = 8 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := simulated(t, change, never)
			if !r.Good() || r.Releases != 8 || r.Unconfirmed != 0 || len(r.Codes) != 0 {
				t.Errorf("got %+v", r)
			}
			for _, l := range r.Latency {
				if l.Step != "challenge" && l.Count != 8 || l.P50 > l.P99 || l.P99 > l.Max {
					t.Errorf("latency %+v", l)
				}
			}
			var text bytes.Buffer
			if err := r.Write(&text); err != nil || !bytes.Contains(text.Bytes(), []byte("8 releases in")) {
				t.Errorf("%v: %s", err, &text)
			}
		})
	}
}

func TestMachinesBootAgainAndKeepTheirDiskKey(t *testing.T) {
	t.Parallel()
	r := simulated(t, func(c *Config) { c.Machines, c.Rate, c.For, c.Again = 2, 40, 500*time.Millisecond, 0 }, never)
	if !r.Good() || r.Releases < 3 {
		t.Errorf("got %+v", r)
	}
}

func TestAFleetThatWasOnBeforeIsReleasedAgain(t *testing.T) {
	t.Parallel()
	c, cl := served(t, never)
	for resets := range uint32(3) {
		c.Resets = resets
		if r := run(t, c, cl); !r.Good() || r.Releases != 8 || len(r.Codes) != 0 {
			t.Errorf("after %d resets got %+v", resets, r)
		}
	}
}

func TestFleetsOfTwoSeedsAreOtherMachines(t *testing.T) {
	t.Parallel()
	c, cl := served(t, never)
	for _, seed := range []string{"one", "two"} {
		c.Seed = seed
		if r := run(t, c, cl); !r.Good() || r.Releases != 8 || len(r.Codes) != 0 {
			t.Errorf("seed %s: got %+v", seed, r)
		}
	}
}

func TestAMachineThatIsNotEnrolledIsReportedAsRefusedWrongly(t *testing.T) {
	t.Parallel()
	var n atomic.Int64
	r := simulated(t, func(c *Config) {
		enrol := c.Enrol
		c.Enrol = func(ctx context.Context, rec *api.InstallRecord) error {
			if n.Add(1) == 1 {
				return nil
			}
			return enrol(ctx, rec)
		}
	}, never)
	if r.Good() || r.WrongRefusals != 1 || r.Unserved != 1 || r.Releases != 7 || r.Codes["verdict "+string(attest.CodeMachineUnknown)] != 1 {
		t.Errorf("got %+v", r)
	}
}

// The store says that it failed, and has stored the release: the machine asks
// again, is refused, and boots again.
func TestAReleaseThatWasLostOnTheWayIsNotGivenTwice(t *testing.T) {
	t.Parallel()
	var commits atomic.Int64
	r := simulated(t, func(c *Config) { c.Machines, c.Open, c.Again = 1, 1, 0 }, func(method string) (error, bool) {
		if method == "Commit" && commits.Add(1) == 2 { // the first enrols
			return errors.New("disk on fire"), true
		}
		return nil, false
	})
	if !r.Good() || r.Rebooted != 1 || r.Retries != 1 || r.Releases != 1 || r.Codes["unavailable"] != 1 {
		t.Errorf("got %+v", r)
	}
}

func TestLogsHaveTheSizeThatWasAskedFor(t *testing.T) {
	t.Parallel()
	for _, size := range []int{MinLog, 32 << 10, 300 << 10} {
		if n := len(Boot(size).Log()); n < size*9/10 || n > size*11/10 {
			t.Errorf("a log of %d bytes, want %d", n, size)
		}
	}
}
