package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/client"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/fleet"
	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
	"github.com/sealift/sealift/image/sign/bundle"
)

func newSimulateCommand(e *env) *cobra.Command {
	return newGroup("simulate", "Let machines that do not exist boot against a service", `
A simulated machine has a software TPM with keys, signatures and an event log of
its own, and speaks to the service as the agent does. It serves to size a service
and to see that it holds, not to run anything.`, `
  sealift simulate fleet --machines 1000
  sealift simulate prepare fleet --keys keys`,
		newSimulateFleetCommand(e), newSimulatePrepareCommand(e))
}

func newSimulatePrepareCommand(e *env) *cobra.Command {
	var keys string
	cmd := &cobra.Command{
		Use:   "prepare DIR",
		Short: "Make what a service must trust to be tried with a simulated fleet",
		Long: `Makes DIR with an authority for software TPMs, the signed manifest of the image
that simulated machines boot, and a catalogue with their firmware. A service with
these in its configuration gives secrets to anybody who has DIR: never add them to
one that real machines use.

  images: [DIR/image]
  tpm:
    allowed: [software]
    roots: [{class: software, file: DIR/tpm-root.pem}]
  firmware: {catalogue: DIR/catalogue.yaml}

Example:
  sealift simulate prepare fleet --keys keys` + exitStatus,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := prepareFleet(cmd.Context(), e, keys, args[0]); err != nil {
				return err
			}
			return e.print(struct {
				Dir string `json:"dir"`
			}{args[0]}, "%s: add its image, root and catalogue to a service that real machines do not use", args[0])
		},
	}
	cmd.Flags().StringVar(&keys, "keys", "keys", "key `directory` of the service")
	return cmd
}

func prepareFleet(ctx context.Context, e *env, keys, dir string) (err error) {
	ring, err := openKeys(keys)
	if err != nil {
		return err
	}
	signer, err := new(keyOptions).imageSigner(ctx, e, ring)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, signer.Close()) }()
	return fleet.Prepare(ctx, dir, signer, e.now())
}

// simulateOptions are the flags of `sealift simulate fleet`.
type simulateOptions struct {
	operatorOptions
	url, fleet, release string
	run                 fleet.Config
	logSize             int
}

func newSimulateFleetCommand(e *env) *cobra.Command {
	var o simulateOptions
	cmd := &cobra.Command{
		Use:   "fleet",
		Short: "Enrol a simulated fleet, let it boot, and report",
		Long: `Enrols machines and lets them boot: connect, challenge, evidence, release opened,
confirmation. Without --url it starts a service of its own on this machine, with a
new database in a temporary directory, and measures what that uses. With --url it
takes a service that was prepared for it (sealift simulate prepare).

Each machine boots once, as fast as --open lets, unless --rate and --duration say
otherwise. --storm switches all machines on at once, as after a power cut: those
that are sent away come back as the agent does.

The report has releases a second, the latency of each step, of all of them (whole)
and from power-on to the release (released), refusals by code, and what the service
used. It fails with exit status 3 if a machine was refused wrongly, was never
served, or was given a second release in one boot.

Example:
  sealift simulate fleet --machines 2000 --rate 200 --duration 30s
  sealift simulate fleet --machines 10000 --storm --json
  sealift simulate fleet --url https://10.77.2.1:8443 --fleet fleet --release-key keys/release.pub \
    --server https://127.0.0.1:8444 --identity ana --machines 500` + exitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return simulateFleet(cmd.Context(), e, &o) },
	}
	o.addFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&o.url, "url", "", "https `URL` of the node API; one is started if empty")
	f.StringVar(&o.fleet, "fleet", "", "`directory` of 'sealift simulate prepare', with --url")
	f.StringVar(&o.release, "release-key", "", "`file` with the public key that releases are signed with, with --url")
	f.IntVar(&o.run.Machines, "machines", 100, "`number` of machines")
	f.Float64Var(&o.run.Rate, "rate", 0, "`number` of boots to begin in a second; 0 as fast as possible")
	f.DurationVar(&o.run.For, "duration", 0, "`time` for which boots are begun; 0 each machine once")
	f.BoolVar(&o.run.Storm, "storm", false, "switch all machines on at once")
	f.IntVar(&o.run.Open, "open", 64, "highest `number` of machines between connection and confirmation at once")
	f.DurationVar(&o.run.TPMTime, "tpm-time", 0, "`time` that each TPM takes to answer a challenge")
	f.Float64Var(&o.run.Again, "again", 0.01, "`share` of the boots that ask for a second release")
	f.IntVar(&o.run.Addresses, "addresses", 250, "loopback addresses that the machines come from, without --url")
	f.IntVar(&o.logSize, "log-size", 32<<10, "`bytes` of each machine's event log")
	f.StringVar(&o.run.Seed, "seed", "sealift", "`text` that all keys of the machines follow from")
	f.Uint32Var(&o.run.Resets, "resets", 0, "`number` of times that each machine was on before: more than in the last run against the same service")
	return cmd
}

func (o *simulateOptions) check() error {
	switch r := &o.run; {
	case o.url != "" && (o.fleet == "" || o.release == ""):
		return withHint(errors.New("--url needs --fleet and --release-key"), "sealift simulate prepare DIR makes a fleet")
	case o.url == "" && (o.fleet != "" || o.release != ""):
		return errors.New("--fleet and --release-key are of a service that is there: give --url")
	case r.Machines < 1 || r.Open < 1:
		return errors.New("--machines and --open must be at least 1")
	case r.Rate < 0 || r.For < 0 || r.TPMTime < 0 || r.Again < 0 || r.Again > 1 || r.Addresses < 0 || r.Addresses > 1_000_000:
		return errors.New("--rate, --duration, --tpm-time, --again or --addresses is out of range")
	case r.Storm && (r.Rate > 0 || r.For > 0):
		return errors.New("--storm switches all machines on at once: it goes without --rate and --duration")
	case o.logSize < fleet.MinLog || o.logSize > fleet.MaxLog:
		return fmt.Errorf("--log-size is %d, want %d to %d", o.logSize, fleet.MinLog, fleet.MaxLog)
	}
	return nil
}

// fleetGC is the garbage collector's percentage of a simulated fleet.
const fleetGC = 400

func simulateFleet(ctx context.Context, e *env, o *simulateOptions) (err error) {
	if err := o.check(); err != nil {
		return usage{err}
	}
	if os.Getenv("GOGC") == "" {
		// A collector that runs often takes time from a service beside it.
		defer debug.SetGCPercent(debug.SetGCPercent(fleetGC))
	}
	var report *fleet.Report
	if o.url == "" {
		report, err = o.hosted(ctx, e)
	} else {
		report, err = o.remote(ctx, e)
	}
	if err != nil {
		return err
	}
	if e.json {
		err = json.NewEncoder(e.out).Encode(report)
	} else {
		err = report.Write(e.out)
	}
	if err == nil && !report.Good() {
		err = refused{errors.New("a machine was refused wrongly, never served, or released twice: see the report")}
	}
	return err
}

// remote lets the fleet boot against a service that runs.
func (o *simulateOptions) remote(ctx context.Context, e *env) (*fleet.Report, error) {
	pool, _, err := readIdentity(o.identity)
	if err != nil {
		return nil, err
	}
	text, err := readFile(o.release, maxSmall)
	if err != nil {
		return nil, fmt.Errorf("read the release key: %w", err)
	}
	o.run.Addresses = 0
	if o.run.Files, err = fleet.Load(o.fleet, o.logSize); err != nil {
		return nil, err
	}
	var enrolled *fleet.Fleet
	err = o.do(func(c *operator.Client) error {
		o.run.Enrol = func(ctx context.Context, rec *api.InstallRecord) error {
			_, err := c.Install(ctx, rec)
			return err
		}
		enrolled, err = fleet.Enrol(ctx, o.run)
		return err
	})
	if err != nil {
		return nil, err
	}
	return o.boot(ctx, e, enrolled, o.url, pool, text)
}

// agentPatience is the patience of sealift-agent's client.
const agentPatience = 30 * time.Second

// boot lets a fleet boot against the service at url.
func (o *simulateOptions) boot(ctx context.Context, e *env, f *fleet.Fleet, url string, pool *x509.CertPool, releaseKey []byte) (*fleet.Report, error) {
	key, err := bundle.PublicKey(releaseKey)
	if err != nil {
		return nil, fmt.Errorf("read the release key: %w", err)
	}
	progress := e.progress()
	return f.Run(ctx, &client.Client{URL: url, CA: pool, ReleaseKey: key, Patience: agentPatience}, func(released, of int64) { progress.Note("released %d of %d", released, of) })
}

// hosted starts a service with keys, database and configuration of its own, and
// lets the fleet boot against it.
func (o *simulateOptions) hosted(ctx context.Context, e *env) (_ *fleet.Report, err error) {
	dir, err := os.MkdirTemp("", "sealift-fleet-")
	if err != nil {
		return nil, fmt.Errorf("simulate a fleet: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := keyring.Init(at("keys"), e.now(), rand.Reader); err != nil {
		return nil, err
	}
	if err := prepareFleet(ctx, e, at("keys"), at("fleet")); err != nil {
		return nil, err
	}
	config := fmt.Sprintf(`keys: keys
kek: {file: keys/disk-kek.key}
store: sealift.db
images: [fleet/%s]
node: {listen: "127.0.0.1:0", hosts: ["127.0.0.1"]}
operator: {listen: "127.0.0.1:0", hosts: ["127.0.0.1"]}
tpm:
  allowed: [software]
  roots: [{class: software, file: fleet/%s}]
firmware: {catalogue: fleet/%s}
`, fleet.DirImage, fleet.FileRoot, fleet.FileCatalogue)
	if err := os.WriteFile(at("serve.yaml"), []byte(config), 0o600); err != nil {
		return nil, fmt.Errorf("simulate a fleet: %w", err)
	}
	enrolled, err := o.enrol(ctx, e, dir)
	if err != nil {
		return nil, err
	}
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("simulate a fleet: %w", err)
	}
	host, err := fleet.StartHost(ctx, at("sealift.db"), io.Discard, program, "--json", "serve", "--config", at("serve.yaml"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	ring, err := openKeys(at("keys"))
	if err != nil {
		return nil, err
	}
	issuer, err := ring.Issuer(e.now(), rand.Reader)
	if err != nil {
		return nil, err
	}
	release, err := ring.PublicPEM(keyring.FileRelease)
	if err != nil {
		return nil, err
	}
	meter, err := host.Meter()
	if err != nil {
		return nil, err
	}
	report, err := o.boot(ctx, e, enrolled, "https://"+host.Nodes, issuer.Pool(), release)
	if err != nil {
		return nil, err
	}
	return report, meter(report)
}

// enrol enrols the fleet in the database of a service that does not run yet,
// as the provisioner does: an operator may not ask that fast.
func (o *simulateOptions) enrol(ctx context.Context, e *env, dir string) (_ *fleet.Fleet, err error) {
	store, err := openStore(ctx, filepath.Join(dir, "sealift.db"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	files, err := fleet.Load(filepath.Join(dir, "fleet"), o.logSize)
	if err != nil {
		return nil, err
	}
	ring, err := openKeys(filepath.Join(dir, "keys"))
	if err != nil {
		return nil, err
	}
	kek, err := ring.DiskKEK()
	if err != nil {
		return nil, err
	}
	release, err := ring.Release()
	if err != nil {
		return nil, err
	}
	standing, err := server.NewOwnStanding(store, audit.ReleaseKeys{Present: &release.PublicKey})
	if err != nil {
		return nil, err
	}
	policy := &attest.Policy{TPM: attest.TPMPolicy{
		Roots: []attest.TPMRoot{{Class: attest.TPMSoftware, Certificate: files.CA.Root}}, Allowed: []attest.TPMClass{attest.TPMSoftware},
	}}
	service, err := server.New(server.Config{
		Store: store, Standing: standing, KEK: kek, ReleaseKey: release, Log: slog.New(slog.DiscardHandler), Clock: e.now,
		Policy: func(context.Context, attest.MachineID) (*attest.Policy, error) { return policy, nil },
	})
	if err != nil {
		return nil, err
	}
	o.run.Files = files
	o.run.Enrol = func(ctx context.Context, rec *api.InstallRecord) error {
		_, err := service.Enrol(ctx, "simulator", rec)
		return err
	}
	return fleet.Enrol(ctx, o.run)
}
