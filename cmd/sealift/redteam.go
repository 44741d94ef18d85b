package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/client"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/attest/papertpm"
	"github.com/sealift/sealift/cmd/sealift/internal/redteam"
)

// maxStoredEvidence bounds a file of stored evidence, bytes: what a node may
// send, in base64, with what the service adds.
const maxStoredEvidence = 2 * api.MaxEvidenceBody

type redteamOptions struct {
	operatorOptions
	self, list, partial     bool
	newCA, ca               string
	serviceCA, releaseKey   string
	evidence, machine, only string
}

func newAttestRedteamCommand(e *env) *cobra.Command {
	var o redteamOptions
	cmd := &cobra.Command{
		Use:   "redteam [URL]",
		Short: "Attack an attestation service of your own",
		Long: `Attacks the node API at URL with TPMs in software that sign whatever a TPM never
would, and says of each attack whether it was refused, and by which finding. Each
attack imitates the boot of one of your machines, whose accepted evidence it is
given: a file, or the id of a machine, of which the service is asked. What the
attacks are, with the reference of each, is in docs/attacks.md; --list prints it.

A policy for production trusts no TPM in software. Then every attack that is about
evidence is tried, and those are not run that begin with a machine which the service
accepts. To run those too, on a service that is there for it: --new-ek-ca makes an
authority that is valid for one day; add its certificate to tpm.roots with the class
software, allow that class, and give the directory as --ek-ca, and as --identity an
operator, who enrols the attacks' machines. They are revoked at the end. The attack
software-tpm is of no use there, and is not run.

With --self a whole service is started in this process and attacked.

An attack that succeeded, that was refused for another reason than its own, or that
could not be tried is a refusal (exit 3); so is one that was not run, but with
--partial. The attacks stay within the limits of one address and do not flood.

Example:
  sealift attest redteam --self
  sealift attest redteam https://attest.example:8443 --partial --evidence good.json \
    --service-ca keys/service-ca.crt --release-key keys/release.pub
  sealift attest redteam --new-ek-ca lab` + exitStatus,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return attestRedteam(cmd.Context(), e, &o, args) },
	}
	f := cmd.Flags()
	f.BoolVar(&o.self, "self", false, "start a service in this process and attack it")
	f.BoolVar(&o.list, "list", false, "print the attacks and end")
	f.BoolVar(&o.partial, "partial", false, "attacks that cannot be run on this service are no failure")
	f.StringVar(&o.only, "only", "", "run the `attacks` with these names, separated by commas")
	f.StringVar(&o.newCA, "new-ek-ca", "", "make an authority for software TPMs in this `directory` and end")
	f.StringVar(&o.ca, "ek-ca", "", "`directory` of an authority that the service trusts for the class software")
	f.StringVar(&o.serviceCA, "service-ca", "", "PEM `file` with the CA of the service (default: that of --identity)")
	f.StringVar(&o.releaseKey, "release-key", "", "PEM `file` with the public release key")
	f.StringVar(&o.evidence, "evidence", "", "`file` with the stored evidence of an accepted boot")
	f.StringVar(&o.machine, "machine", "", "`id` of a machine whose last accepted evidence the service has (role auditor)")
	o.addFlags(cmd)
	return cmd
}

func attestRedteam(ctx context.Context, e *env, o *redteamOptions, args []string) error {
	attacks, err := chooseAttacks(o.only)
	if err != nil {
		return err
	}
	switch {
	case o.list:
		return listAttacks(e, attacks)
	case o.newCA != "":
		return newLabCA(e, o.newCA)
	case o.self == (len(args) == 1):
		return usage{errors.New("attack what: give either the URL of a node API or --self")}
	}
	if o.self {
		dir, err := os.MkdirTemp("", "sealift-redteam-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		// What the service logs of its attackers is not asked for here.
		target, stop, err := redteam.Self(ctx, dir, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		return errors.Join(runAttacks(ctx, e, o, target, attacks), stop())
	}
	target, done, err := o.target(ctx, args[0])
	if err != nil {
		return err
	}
	defer done()
	return runAttacks(ctx, e, o, target, attacks)
}

// chooseAttacks returns all attacks, or those with the names.
func chooseAttacks(names string) ([]redteam.Attack, error) {
	all := redteam.Attacks()
	if names == "" {
		return all, nil
	}
	byName := map[string]redteam.Attack{}
	for _, a := range all {
		byName[a.Name] = a
	}
	var chosen []redteam.Attack
	for name := range strings.SplitSeq(names, ",") {
		a, ok := byName[name]
		if !ok {
			return nil, withHint(usage{fmt.Errorf("there is no attack %q", name)}, "sealift attest redteam --list prints them")
		}
		chosen = append(chosen, a)
	}
	return chosen, nil
}

func listAttacks(e *env, attacks []redteam.Attack) error {
	if e.json {
		return json.NewEncoder(e.out).Encode(attacks)
	}
	for _, a := range attacks {
		needs := ""
		if a.Accepted {
			needs = " (needs --ek-ca)"
		}
		if _, err := fmt.Fprintf(e.out, "%-36s %s%s\n%-36s   refused by %s\n", a.Name, a.What, needs, "", strings.Join(a.Want, " or ")); err != nil {
			return err
		}
	}
	return nil
}

func newLabCA(e *env, dir string) error {
	ca, err := redteam.CreateCA(dir, e.now())
	if err != nil {
		return err
	}
	crt, err := filepath.Abs(filepath.Join(dir, redteam.FileCACert))
	if err != nil {
		return err
	}
	return e.print(struct {
		Dir     string `json:"dir"`
		Root    string `json:"root"`
		Expires string `json:"expires"`
	}{dir, crt, ca.NotAfter.UTC().Format("2006-01-02T15:04:05Z")}, `%s, until %s. In the configuration of a service that is there to be attacked:
  tpm:
    allowed: [software]
    roots: [{class: software, file: %s}]`, dir, ca.NotAfter.UTC().Format("2006-01-02 15:04 UTC"), crt)
}

// target is the service that the command line names.
func (o *redteamOptions) target(ctx context.Context, url string) (_ redteam.Target, done func(), err error) {
	done = func() {}
	t := redteam.Target{Operators: o.server}
	var owner *operator.Client
	if o.identity != "" {
		if owner, err = o.client(); err != nil {
			return t, done, err
		}
		done, t.Owner = owner.Close, owner
	}
	if o.releaseKey == "" || o.serviceCA == "" && o.identity == "" || (o.evidence == "") == (o.machine == "") || o.machine != "" && owner == nil {
		return t, done, usage{errors.New("an attack needs --release-key, one of --service-ca and --identity, and either --evidence or --machine with --identity")}
	}
	key, err := readReleaseKey(o.releaseKey)
	if err != nil {
		return t, done, err
	}
	var pool *x509.CertPool
	if o.serviceCA == "" {
		pool, _, err = readIdentity(o.identity)
	} else {
		pool, err = readPool(o.serviceCA)
	}
	if err != nil {
		return t, done, err
	}
	if o.ca != "" {
		if t.CA, err = redteam.OpenCA(o.ca); err != nil {
			return t, done, withHint(err, "sealift attest redteam --new-ek-ca %s", o.ca)
		}
	} else {
		t.Owner = nil // nothing of ours would be accepted: nothing is enrolled
	}
	stored, err := o.stored(ctx, owner)
	if err != nil {
		return t, done, err
	}
	if t.Boot, err = papertpm.ReadBoot(stored.Evidence.EventLog); err != nil {
		return t, done, fmt.Errorf("the evidence to imitate: %w", err)
	}
	t.Boot.SMBIOS, t.Boot.Disk = stored.Evidence.SMBIOS, stored.Evidence.Disk
	t.Client = &client.Client{URL: url, CA: pool, ReleaseKey: key}
	t.TLS = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}
	return t, done, nil
}

// stored returns the evidence whose boot is imitated.
func (o *redteamOptions) stored(ctx context.Context, owner *operator.Client) (*api.StoredEvidence, error) {
	var b []byte
	var err error
	if o.evidence != "" {
		if b, err = readFile(o.evidence, maxStoredEvidence); err != nil {
			return nil, fmt.Errorf("read the evidence to imitate: %w", err)
		}
	} else {
		id, err := parseMachine(o.machine)
		if err != nil {
			return nil, err
		}
		if err := o.do(func(*operator.Client) error {
			b, err = lastAccepted(ctx, owner, id)
			return err
		}); err != nil {
			return nil, err
		}
	}
	s := new(api.StoredEvidence)
	if err := json.Unmarshal(b, s); err != nil {
		return nil, usage{fmt.Errorf("the evidence to imitate is none that a service stored: %w", err)}
	}
	return s, nil
}

// lastAccepted returns the evidence that a machine was last accepted with.
func lastAccepted(ctx context.Context, c *operator.Client, id attest.MachineID) ([]byte, error) {
	var last *audit.Verdict
	for entry, err := range c.Audit(ctx, 1, id) {
		if err != nil {
			return nil, err
		}
		if entry.Kind != audit.KindVerdict {
			continue
		}
		v := new(audit.Verdict)
		if err := json.Unmarshal(entry.Data, v); err != nil {
			return nil, fmt.Errorf("audit entry %d: %w", entry.Seq, err)
		}
		if v.Result != nil && v.Result.Allowed && !v.Evidence.IsZero() {
			last = v
		}
	}
	if last == nil {
		return nil, fmt.Errorf("machine %s was never accepted", id)
	}
	return c.Evidence(ctx, last.Evidence)
}

func readPool(file string) (*x509.CertPool, error) {
	b, err := readFile(file, maxSmall)
	if err != nil {
		return nil, fmt.Errorf("read the service's CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, usage{fmt.Errorf("read the service's CA: %s holds no certificate", file)}
	}
	return pool, nil
}

func readReleaseKey(file string) (*ecdsa.PublicKey, error) {
	b, err := readFile(file, maxSmall)
	if err != nil {
		return nil, fmt.Errorf("read the release key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, usage{fmt.Errorf("read the release key: %s is no PEM public key", file)}
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, usage{fmt.Errorf("read the release key: %s: %w", file, err)}
	}
	public, ok := key.(*ecdsa.PublicKey)
	if !ok {
		return nil, usage{fmt.Errorf("read the release key: %s is %T, want ECDSA", file, key)}
	}
	return public, nil
}

// runAttacks runs the attacks, prints a line of each, and then what it comes to.
func runAttacks(ctx context.Context, e *env, o *redteamOptions, t redteam.Target, attacks []redteam.Attack) error {
	count := map[string]int{}
	var failed error
	err := redteam.Run(ctx, t, attacks, func(r redteam.Report) {
		count[r.Verdict]++
		if err := printReport(e, r); err != nil && failed == nil {
			failed = fmt.Errorf("write the report: %w", err)
		}
	})
	if err := errors.Join(err, failed); err != nil {
		return fmt.Errorf("attack: %w", err)
	}
	bad := count[redteam.Accepted] + count[redteam.Wrong] + count[redteam.Failed]
	summary := fmt.Sprintf("%d of %d attacks refused, %d succeeded, %d refused for another reason, %d could not be tried, %d not run",
		count[redteam.Refused], len(attacks), count[redteam.Accepted], count[redteam.Wrong], count[redteam.Failed], count[redteam.NotRun])
	switch {
	case bad > 0:
		return refused{errors.New(summary)}
	case count[redteam.NotRun] > 0 && !o.partial && o.ca != "":
		return withHint(refused{errors.New(summary)}, "a service that takes TPMs in software cannot refuse one: take what can be tried with --partial")
	case count[redteam.NotRun] > 0 && !o.partial:
		return withHint(refused{errors.New(summary)}, "give --ek-ca and --identity, or take what can be tried with --partial")
	}
	return e.print(struct {
		Refused int `json:"refused"`
		NotRun  int `json:"notRun"`
	}{count[redteam.Refused], count[redteam.NotRun]}, "%s", summary)
}

func printReport(e *env, r redteam.Report) error {
	if e.json {
		return json.NewEncoder(e.out).Encode(r)
	}
	line := fmt.Sprintf("%-9s %-36s %s", r.Verdict, r.Attack, plain(strings.Join(r.Codes, " ")))
	if r.Verdict != redteam.Refused {
		line += "\n          " + plain(r.Detail)
	}
	_, err := fmt.Fprintln(e.out, strings.TrimRight(line, " "))
	return err
}
