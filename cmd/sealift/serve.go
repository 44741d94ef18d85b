package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/cluster"
	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
	"github.com/sealift/sealift/cmd/sealift/internal/monitor"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/provisioner"
	provisionapi "github.com/sealift/sealift/provisioner/api"
)

func newServeCommand(e *env) *cobra.Command {
	var config, format string
	var debug bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the attestation service, and the provisioner if configured",
		Long: `Runs the services that the configuration file names until SIGTERM: the node API
and the operator API of the attestation service, monitoring, and the
provisioner's DHCP, TFTP and HTTP boot. Reference values come from the signed
manifests in the image directories; a manifest whose signature does not verify
stops the start.

A configuration; docs/serve.md has every setting:
  keys: keys
  kek: {file: keys/disk-kek.key}
  store: sealift.db   # or postgres://sealift@db.example/sealift?sslmode=verify-full
  witness: witness.json   # not where the database is: docs/audit.md
  images: [build/image]
  node: {listen: "10.77.2.1:8443", hosts: ["10.77.2.1"]}   # proxies: [10.77.2.8/29] behind a load balancer
  operator: {listen: "127.0.0.1:8444", hosts: ["127.0.0.1"]}
  monitor: {listen: "127.0.0.1:9464"}
  tpm:
    allowed: [hardware, firmware]
    vendors: true
    store: tpm-roots
  firmware: {catalogue: catalogue.yaml}
  policy: {file: policy.yaml}
  cluster: {distro: kubernetes, kubeconfig: admin.kubeconfig}
  limits: {grace: 10s}
  reports: {every: 10m, deadline: 30m}
  retention: {evidence: 400d}
  webhooks:
  - {url: "https://ops.example/sealift", secretFile: webhook.key, events: [machine.quarantined, machine.stale, alarm]}
  provision:
    interface: eth1
    address: 10.77.1.1/24
    first: 10.77.1.100
    last: 10.77.1.199
    state: provisioner

The key-encryption key, under which disk keys are stored, may instead be in a file
that a key management service decrypts at the start. Keys that were replaced are
named until 'sealift keys kek status' shows that nothing is under them:
  kek:
    uri: hashivault://fleet-kek
    wrapped: kek.wrapped
    former: [{file: keys/disk-kek.key}]

So are the public halves of release keys that were replaced, the latest last: what
they signed before the change stays worth something (docs/keys.md):
  release: {former: [release-1.pub]}

On SIGTERM the service is first no longer ready, then takes requests for
limits.grace more, then lets those that it has let in finish for at most
limits.drain and tells others to come back, and ends with 0. A second SIGTERM or
Ctrl-C after a moment ends it at once.

Example:
  sealift serve --config serve.yaml` + exitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := readServeConfig(config)
			if err != nil {
				return err
			}
			log, err := e.serverLog(format, debug)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), e, c, log)
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "configuration `file` (required)")
	cmd.Flags().BoolVar(&debug, "debug", false, "log every request and wire details")
	cmd.Flags().StringVar(&format, "log-format", "", "`format` of the log: text, json (default: text, or json with --json)")
	required(cmd, "config")
	return cmd
}

// serve is the composition root of all services. It binds every socket before
// it answers anybody, and but for monitoring answers nobody before it is ready.
func serve(ctx context.Context, e *env, c *serveConfig, log *slog.Logger) (err error) {
	ring, err := openKeys(c.Keys)
	if err != nil {
		return err
	}
	images, err := loadImages(c.Images, ring)
	if err != nil {
		return err
	}
	warnOfDebug(images, log)
	if c.Cluster != nil {
		if err := checkDistro(images, c.Cluster.Distro); err != nil {
			return err
		}
	}
	catalogue, err := readCatalogue(c.Firmware.Catalogue)
	if err != nil {
		return err
	}
	tpm, err := c.TPM.policy()
	if err != nil {
		return err
	}
	store, err := openStore(ctx, c.Store)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	own := new(ownWord)
	tail := own.tail()
	store.Tell(tail)

	mon := monitor.New(monitor.Config{Version: version(), Log: log, Clock: e.now})
	metered := mon.Store(store)
	moves := &campaigns{store: metered, catalogue: catalogue, clock: e.now, log: log}
	document, signature, err := loadPolicy(c.Policy, ring)
	if err != nil {
		return err
	}
	policies := &livePolicy{
		store: metered, ring: ring, config: c.Policy, file: document, catalogue: catalogue, mon: mon, log: log, witnessFile: c.Witness, tail: tail, own: own,
		local: &policySource{images: images, tpm: tpm, bank: c.TPM.Bank, references: moves.references, clock: e.now},
	}
	if c.Cluster != nil {
		policies.distro = c.Cluster.Distro
	}
	mon.Require("policy", policies.check)
	mon.Prefer("policy-inputs", policies.alike)
	mon.Prefer("witness", policies.witnessed)
	keks, err := c.KEK.open(ctx)
	if err != nil {
		return err
	}
	release, err := ring.Release()
	if err != nil {
		return err
	}
	keys, err := c.Release.keys(&release.PublicKey)
	if err != nil {
		return err
	}
	policies.former = keys.Former
	var tokens *cluster.Cluster
	if c.Cluster != nil {
		if tokens, err = cluster.New(cluster.Config{
			Distro: c.Cluster.Distro, Kubeconfig: c.Cluster.Kubeconfig, Server: c.Cluster.Server, DeleteNodes: c.Cluster.DeleteNodes, Log: log, Clock: e.now,
		}); err != nil {
			return err
		}
	}
	config := server.Config{
		Store: metered, Policy: policies.policy, KEK: keks[0], FormerKEKs: keks[1:], LostKEKs: c.KEK.Lost, ReleaseKey: release,
		PolicyHolds: policies.holds, ProveBanks: policies.proveBanks, EnablePolicy: policies.enable, Propose: policies.proposer, PolicyState: policies.state,
		AuditHead: policies.auditHead, Standing: firsthand{judge{policies}},
		Firmware: moves, Campaigns: moves.serve, Log: log, Clock: e.now, Version: version(),
		Meter: mon, Limits: c.Limits.server(),
	}
	if tokens != nil {
		config.Tokens, config.Fence = mon.Tokens(tokens), tokens
		mon.Prefer("cluster", mon.TokensMinted())
	}
	if config.Reports, err = c.Reports.value(); err != nil {
		return err
	}
	if config.Webhooks, err = readWebhooks(c.Webhooks); err != nil {
		return err
	}
	config.IgnoreSerials = c.IgnoreSerials
	config.Pruner, config.Retention = mon.Pruner(store), time.Duration(c.Retention.Evidence)
	config.People = c.Operator.people()
	config.NodeProxies, config.OperatorProxies = c.Node.Proxies, c.Operator.Proxies
	revoked, err := ring.Revocations(c.Operator.Revoked)
	if err != nil {
		return err
	}
	config.Revoked = revoked.Revoked
	mon.Prefer("revocations", revoked.Check)
	if o := c.Operator.OIDC; o != nil {
		pool, err := o.pool()
		if err != nil {
			return err
		}
		bearer, err := o.authenticator(pool, e.now)
		if err != nil {
			return err
		}
		config.Bearer = bearer
		mon.Prefer("oidc", bearer.Check)
	}
	mon.Require("store", monitor.StoreWritten(metered, e.now))
	service, err := server.New(config)
	if err != nil {
		return err
	}
	issuer, err := ring.Issuer(e.now(), rand.Reader)
	if err != nil {
		return err
	}
	nodeCert, err := issuer.IssueServer(c.Node.Hosts)
	if err != nil {
		return fmt.Errorf("node API: %w", err)
	}
	operatorCert, err := issuer.IssueServer(c.Operator.Hosts)
	if err != nil {
		return fmt.Errorf("operator API: %w", err)
	}
	nodes, err := net.Listen("tcp", c.Node.Listen)
	if err != nil {
		return fmt.Errorf("node API: %w", err)
	}
	operators, err := net.Listen("tcp", c.Operator.Listen)
	if err != nil {
		return errors.Join(fmt.Errorf("operator API: %w", err), nodes.Close())
	}
	watched, err := listenMonitor(c.Monitor, issuer, mon, log)
	if err != nil {
		return errors.Join(err, nodes.Close(), operators.Close())
	}
	warnOfFiles(service.MaxConnections(), log)
	policies.named(nodes.Addr().String())
	// The APIs outlive ctx, and what they need outlives them. group's context
	// ends if one of them fails.
	apis, endAPIs := context.WithCancel(context.WithoutCancel(ctx))
	defer endAPIs()
	background, endBackground := context.WithCancel(context.WithoutCancel(ctx))
	defer endBackground()
	group, ctx := errgroup.WithContext(ctx)
	if watched != nil {
		// A start may read the audit log for minutes: who asks is told so.
		mon.Starting("reading the store and its audit log")
		group.Go(func() error { return serveMonitor(background, watched, c.Monitor, mon, service, log) })
		log.Info("starting", "monitor", watched.Addr().String())
	}
	if err := start(ctx, service, policies, signature); err != nil {
		endBackground()
		return errors.Join(hintOfKEK(err), nodes.Close(), operators.Close(), group.Wait())
	}
	mon.Serving()
	id, releaseID := service.KeyIDs()
	mon.Key("disk-kek", id)
	mon.Key("release", releaseID)

	group.Go(func() error { drain(ctx, mon, c.Limits.Grace, endAPIs, log); return nil })
	group.Go(func() error {
		defer endBackground()
		listeners, apis := errgroup.WithContext(apis)
		listeners.Go(func() error { return service.ServeNodes(apis, nodes, nodeCert) })
		listeners.Go(func() error { return service.ServeOperators(apis, operators, operatorCert, issuer.Pool()) })
		return listeners.Wait()
	})
	group.Go(func() error { mon.Count(background, metered); return nil })
	ceiling := memoryCeiling(os.DirFS("/"), log)
	group.Go(func() error { tuneGC(background, ceiling); return nil })
	group.Go(func() error { rewrap(ctx, service, log); return nil })
	group.Go(func() error { policies.Run(background); return nil })
	group.Go(func() error { return service.Watch(background) })
	mon.Prefer("retention", service.ClockPlausible)
	mon.Prefer("restore", service.RestoreAccepted)
	group.Go(func() error { return service.Retain(background) })
	group.Go(func() error { return service.DeliverWebhooks(background) })
	if tokens != nil {
		group.Go(func() error { return tokens.Run(background, service) })
	}
	if c.Provision != nil {
		group.Go(func() error { return keepProvisioning(background, c, images, service, log) })
	}
	serving := []any{"nodes", nodes.Addr().String(), "operators", operators.Addr().String(), "images", len(images)}
	if watched != nil {
		serving = append(serving, "monitor", watched.Addr().String())
	}
	log.Info("serving", serving...)
	return group.Wait()
}

// hintOfKEK says what to do about disk keys that cannot be opened.
func hintOfKEK(err error) error {
	if !errors.Is(err, server.ErrNoKEK) {
		return err
	}
	return withHint(err, "name the missing key under kek.former ('sealift keys kek show' tells a key's id); only if it is lost for good, put its id under kek.lost: its machines must then be installed again")
}

// rewrap brings all disk keys under the present key-encryption key, while the
// service answers. What it could not do, a person must look at.
func rewrap(ctx context.Context, service *server.Server, log *slog.Logger) {
	if err := service.Rewrap(ctx); err != nil && ctx.Err() == nil {
		log.Error("disk keys are left under a former key-encryption key", "error", err, "again", "sealift keys kek rewrap")
	}
}

// start begins the service, and enables the policy before anything is judged
// by it.
func start(ctx context.Context, service *server.Server, policies *livePolicy, signature []byte) error {
	if err := service.Start(ctx); err != nil {
		return err
	}
	return policies.begin(ctx, signature)
}

// loadedImage is a built image whose signature was verified.
type loadedImage struct {
	dir      string // empty: its manifest alone came with a policy
	manifest *manifest.Manifest
	digest   [32]byte // of the manifest's bytes
}

// loadImages reads the manifests that reference values come from.
func loadImages(dirs []string, ring *keyring.Keyring) ([]loadedImage, error) {
	pub, err := ring.PublicPEM(keyring.FileImage)
	if err != nil {
		return nil, err
	}
	var all []loadedImage
	for _, dir := range dirs {
		m, b, err := readManifest(dir, pub)
		if err != nil {
			return nil, err
		}
		all = append(all, loadedImage{dir, m, sha256.Sum256(b)})
	}
	return all, nil
}

// warnOfDebug says which images are marked as not for production. Their
// machines are given their secrets like any other.
func warnOfDebug(images []loadedImage, log *slog.Logger) {
	for _, i := range images {
		if i.manifest.Debug {
			log.Warn("image is marked debug, not for production", "image", i.manifest.Name+" "+i.manifest.Version, "directory", i.dir)
		}
	}
}

// checkDistro refuses images whose nodes could not join the cluster: a token is
// watched over as its distro uses it.
func checkDistro(images []loadedImage, d cluster.Distro) error {
	for _, i := range images {
		if got := i.manifest.Kubernetes.Distro; got != string(d) {
			return withHint(fmt.Errorf("image %s %s in %s holds %q, cluster.distro is %s", i.manifest.Name, i.manifest.Version, i.dir, got, d),
				"set cluster.distro to that of the images, or leave the image out")
		}
	}
	return nil
}

// installs hands install records from the provisioner to the attestation
// service. The provisioner delivers a record until it knows that it was taken,
// so it may come again; the service takes it once.
type installs struct{ service *server.Server }

// Record implements provisioner.RecordSink.
func (i installs) Record(ctx context.Context, r provisionapi.Record) error {
	var rec api.InstallRecord
	if err := json.Unmarshal(r.Record, &rec); err != nil {
		return fmt.Errorf("%w: %w", provisioner.ErrRecordRefused, err)
	}
	_, err := i.service.Enrol(ctx, "provisioner: "+r.Host.MAC, &rec)
	if errors.Is(err, server.ErrRefused) {
		return fmt.Errorf("%w: %w", provisioner.ErrRecordRefused, err)
	}
	return err
}

// provisionPause is how long a provisioner that failed rests.
const provisionPause = 5 * time.Second

// keepProvisioning runs the provisioner until ctx ends. One that cannot start
// ends the program, so that a wrong configuration shows. One that fails later,
// because the factory's network did, is started again: the stores' boxes must
// not wait for it.
func keepProvisioning(ctx context.Context, c *serveConfig, images []loadedImage, service *server.Server, log *slog.Logger) error {
	started := false
	for {
		err := provision(ctx, c, images, service, log, func() { started = true })
		if err == nil || !started {
			return err
		}
		log.Error("provisioning failed", "error", err, "again", provisionPause)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(provisionPause):
		}
	}
}

// provision runs the provisioner until ctx ends, and calls ready once it serves.
func provision(ctx context.Context, c *serveConfig, images []loadedImage, service *server.Server, log *slog.Logger, ready func()) (err error) {
	p := c.Provision
	if err := os.MkdirAll(p.State, 0o700); err != nil {
		return fmt.Errorf("provisioner: %w", err)
	}
	hosts, err := provisioner.OpenFileHosts(filepath.Join(p.State, "hosts.jsonl"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, hosts.Close()) }()
	dirs, installers, err := provisionable(images, p.Image, log)
	if err != nil {
		return err
	}
	s := &provisioner.Server{
		Interface: p.Interface, Address: p.Address, Range: provisioner.Range{First: p.First, Last: p.Last},
		LeaseFile: filepath.Join(p.State, "leases.jsonl"), Installers: installers, Images: dirs, Image: p.Image,
		Hosts: hosts, Records: installs{service}, Log: log.With("service", "provisioner"),
		Ready: func() {
			ready()
			log.Info("provisioning", "interface", p.Interface, "address", p.Address)
		},
	}
	return s.Run(ctx)
}
