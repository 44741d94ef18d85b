package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/attest/policy"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/firmware"
	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/sign"
	"github.com/sealift/sealift/image/sign/bundle"
	"github.com/sealift/sealift/profiles"
)

func newPolicyCommand(e *env) *cobra.Command {
	return newGroup("policy", "Say which images, firmware and TPMs may have secrets", `
A policy is a YAML file that is signed with the image key. 'sealift serve' enables
the one that its configuration names when it starts; 'sealift policy enable' has a
running service go by another. docs/policy.md describes all keys.`, `
  sealift policy lint policy.yaml --config serve.yaml
  sealift policy whatif policy.yaml
  sealift policy sign policy.yaml --keys keys
  sealift policy enable policy.yaml --reason 'ticket 4711'`,
		newPolicyLintCommand(e), newPolicySignCommand(e), newPolicyWhatIfCommand(e), newPolicyEnableCommand(e), newPolicyShowCommand(e), newPolicyStatusCommand(e))
}

// readPolicy reads a policy file without asking for its signature.
func readPolicy(file string) (*policy.Document, error) {
	text, err := readFile(file, profiles.MaxPolicy)
	if err != nil {
		return nil, fmt.Errorf("read policy: %w", err)
	}
	return parsePolicy(file, text)
}

// sourceOf makes the policies that a configuration gives, without its store: no
// campaign is known. The policy of the configuration is there only if it
// verifies.
func sourceOf(e *env, file string) (*policySource, *firmware.Catalogue, error) {
	c, err := readServeConfig(file)
	if err != nil {
		return nil, nil, err
	}
	ring, err := openKeys(c.Keys)
	if err != nil {
		return nil, nil, err
	}
	images, err := loadImages(c.Images, ring)
	if err != nil {
		return nil, nil, err
	}
	catalogue, err := readCatalogue(c.Firmware.Catalogue)
	if err != nil {
		return nil, nil, err
	}
	tpm, err := c.TPM.policy()
	if err != nil {
		return nil, nil, err
	}
	d, _, err := loadPolicy(c.Policy, ring)
	if err != nil {
		return nil, nil, err
	}
	return &policySource{
		images: images, tpm: tpm, bank: c.TPM.Bank, document: d, clock: e.now,
		references: func(_ context.Context, machine attest.MachineID) (attest.FirmwarePolicy, error) {
			return firmware.References(catalogue, nil, machine), nil
		},
	}, catalogue, nil
}

func newPolicyLintCommand(e *env) *cobra.Command {
	var o operatorOptions
	var config, failOn string
	cmd := &cobra.Command{
		Use:   "lint FILE",
		Short: "Show what a policy does not cover",
		Long: `Checks a policy file strictly, and lists what it does not cover and what is wrong
with it: each with a severity, a code that stays the same, and the remedy. With
--config it is also held against the images, the firmware catalogue and the TPM
roots of that configuration, with --server against the models of the machines.

Example:
  sealift policy lint policy.yaml
  sealift policy lint policy.yaml --config serve.yaml --fail-on warning

EXIT STATUS
  0  there is no issue of the severity of --fail-on, or worse
  1  it failed
  2  the command line, or the policy, is wrong
  3  there is such an issue`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			severities := []policy.Severity{policy.Error, policy.Warning, policy.Notice}
			if failOn != "never" && !slices.Contains(severities, policy.Severity(failOn)) {
				return usage{fmt.Errorf("--fail-on is %q, want error, warning, notice or never", failOn)}
			}
			d, err := readPolicy(args[0])
			if err != nil {
				return err
			}
			in := policy.LintInputs{At: e.now()}
			if config != "" {
				source, catalogue, err := sourceOf(e, config)
				if err != nil {
					return err
				}
				in = source.lintInputs(catalogue)
			}
			// A server in the environment alone, without who asks, is no wish to ask it.
			if cmd.Flags().Changed("server") || o.server != "" && o.identified() {
				if err := o.do(func(client *operator.Client) error {
					all, err := client.Machines(cmd.Context(), attest.StateUnknown)
					in.Machines = modelsOf(all)
					return err
				}); err != nil {
					return err
				}
			}
			bad := 0
			for _, i := range policy.Lint(d, in) {
				if failOn != "never" && i.Severity.AtLeast(policy.Severity(failOn)) {
					bad++
				}
				if err := e.print(i, "%s  %s  %s: %s\n  remedy: %s", i.Severity, i.Code, plain(i.Where), plain(i.Text), plain(i.Remedy)); err != nil {
					return err
				}
			}
			if bad > 0 {
				return refused{fmt.Errorf("policy %s has %d issues that count as %s or worse", d, bad, failOn)}
			}
			return nil
		},
	}
	o.addFlags(cmd)
	cmd.Flags().StringVar(&config, "config", "", "configuration `file` of sealift serve to hold it against")
	cmd.Flags().StringVar(&failOn, "fail-on", "error", "`severity` that fails: error, warning, notice or never")
	return cmd
}

// modelsOf counts machines by the model that they claim.
func modelsOf(all []api.Machine) []policy.Machines {
	count := map[[2]string]int{}
	for _, m := range all {
		if m.Firmware.Vendor != "" || m.Firmware.Product != "" {
			count[[2]string{m.Firmware.Vendor, m.Firmware.Product}]++
		}
	}
	var out []policy.Machines
	for k, n := range count {
		out = append(out, policy.Machines{Vendor: k[0], Product: k[1], Count: n})
	}
	slices.SortFunc(out, func(a, b policy.Machines) int {
		return strings.Compare(a.Vendor+"\x00"+a.Product, b.Vendor+"\x00"+b.Product)
	})
	return out
}

func newPolicySignCommand(e *env) *cobra.Command {
	var keys string
	var o keyOptions
	cmd := &cobra.Command{
		Use:   "sign FILE",
		Short: "Sign a policy with the image key",
		Long: `Checks a policy and writes FILE.sigstore.json beside it: a sigstore bundle by the
image key, as a manifest has. Files that the policy names are bound by their
digests. cosign verify-blob --key image.pub verifies it, too.

Example:
  sealift policy sign policy.yaml --keys keys` + exitStatus,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			ring, err := openKeys(keys)
			if err != nil {
				return err
			}
			d, err := readPolicy(args[0])
			if err != nil {
				return err
			}
			signer, err := o.imageSigner(cmd.Context(), e, ring)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, signer.Close()) }()
			b, err := signer.Sign(cmd.Context(), d.Text)
			if err != nil {
				return err
			}
			out := args[0] + sign.BundleSuffix
			if err := replaceFile(out, b, 0o644); err != nil {
				return err
			}
			return e.print(struct {
				Policy  string          `json:"policy"`
				Version int             `json:"version"`
				Digest  manifest.SHA256 `json:"digest"`
				Bundle  string          `json:"bundle"`
			}{d.Name, d.Version, d.Digest, out}, "%s", out)
		},
	}
	cmd.Flags().StringVar(&keys, "keys", "keys", "key `directory`")
	o.addFlags(cmd.Flags(), "image-key", "image key")
	return cmd
}

func newPolicyShowCommand(e *env) *cobra.Command {
	var o operatorOptions
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the policy that a service goes by",
		Long: `Prints the policy file that the service has enabled. With --json, one object with
its name, version and digest, whether it is signed, and since when.

Example:
  sealift policy show > policy.yaml` + exitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.do(func(client *operator.Client) error {
				p, err := client.Policy(cmd.Context())
				if err != nil {
					return err
				}
				if p.Unproven != "" && !e.json {
					return withHint(refused{errors.New(plain(p.Unproven))}, "once it is known how it came to it, an approver enables the right one: sealift policy enable FILE --reason TEXT")
				}
				if p.Name == "" && !e.json {
					return withHint(errors.New("the service goes by no policy file: all its images, and all firmware of its catalogue, may run"), "name one in its configuration: policy: {file: policy.yaml}")
				}
				return e.print(p, "%s", strings.TrimSuffix(string(p.Text), "\n"))
			})
		},
	}
	o.addFlags(cmd)
	return cmd
}

// proposalOptions say what is to be tried.
type proposalOptions struct {
	images []string
	at     string
}

func (o *proposalOptions) addImagesFlag(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&o.images, "images", nil, "`directory` of an image that the service does not have yet; may be repeated")
}

func (o *proposalOptions) addFlags(cmd *cobra.Command) {
	o.addImagesFlag(cmd)
	cmd.Flags().StringVar(&o.at, "at", "", "`day` to count by, YYYY-MM-DD (default: today)")
}

func (o *proposalOptions) day() (time.Time, error) {
	if o.at == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.DateOnly, o.at)
	if err != nil {
		return t, usage{fmt.Errorf("--at is %q, want a day like 2027-01-31", o.at)}
	}
	return t, nil
}

// proposal reads a policy, its files and the images, to be sent.
func (o *proposalOptions) proposal(file string) (*api.PolicyProposal, error) {
	d, err := readPolicy(file)
	if err != nil {
		return nil, err
	}
	p := &api.PolicyProposal{Policy: d.Text, Files: map[string][]byte{}}
	if p.At, err = o.day(); err != nil {
		return nil, err
	}
	for _, name := range policy.Files(d.Text) {
		if p.Files[name], err = readFile(filepath.Join(filepath.Dir(file), filepath.FromSlash(name)), policy.MaxFile); err != nil {
			return nil, err
		}
	}
	for _, dir := range o.images {
		var s api.SignedManifest
		if s.Manifest, err = readFile(filepath.Join(dir, image.FileManifest), manifest.MaxSize); err != nil {
			return nil, fmt.Errorf("read the manifest: %w", err)
		}
		if s.Bundle, err = readFile(filepath.Join(dir, image.FileBundle), bundle.MaxSize); err != nil {
			return nil, fmt.Errorf("read the signature of the manifest: %w", err)
		}
		p.Images = append(p.Images, s)
	}
	return p, nil
}

// offline returns the source for a policy beside a configuration.
func (o *proposalOptions) offline(e *env, config, file string) (now, then *policySource, err error) {
	now, _, err = sourceOf(e, config)
	if err != nil {
		return nil, nil, err
	}
	d, err := readPolicy(file)
	if err != nil {
		return nil, nil, err
	}
	at, err := o.day()
	if err != nil {
		return nil, nil, err
	}
	c, err := readServeConfig(config)
	if err != nil {
		return nil, nil, err
	}
	ring, err := openKeys(c.Keys)
	if err != nil {
		return nil, nil, err
	}
	more, err := loadImages(o.images, ring)
	if err != nil {
		return nil, nil, err
	}
	return now, now.with(d, more, at), nil
}

func newPolicyWhatIfCommand(e *env) *cobra.Command {
	var o operatorOptions
	var po proposalOptions
	var config, evidence string
	var all bool
	cmd := &cobra.Command{
		Use:   "whatif NEW",
		Short: "Show which machines another policy would refuse",
		Long: `Replays the policy NEW against the stored evidence of all machines: their last,
and, where that is refused, the last that was accepted. Lists who would be refused
and why, who would be allowed, and who cannot be told, and counts them by model.
Where NEW requires a proof for which a machine was not asked (tpm.proveBanks), the
machine is "not asked": whether it can give the proof is not known, and it counts
neither as refused nor as allowed. It changes nothing. The service does it, for an
auditor; campaigns count as they stand. NEW needs no signature.

With --config and --evidence it is done here, with evidence that was saved as JSON
in a directory, and without campaigns.

Whether a challenge was fresh, and what the service knew of the machine, is as it
was stored, but for its state: one that was revoked or quarantined since is still
refused. Days are counted from today, or from --at.

Example:
  sealift policy whatif new.yaml
  sealift policy whatif new.yaml --at 2027-01-01 --images build/image-2
  sealift policy whatif new.yaml --config serve.yaml --evidence saved

EXIT STATUS
  0  no machine that is allowed now would be refused
  1  it failed
  2  the command line, or the policy, is wrong
  3  some machine would be refused, could not be judged, or was not asked`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (config == "") != (evidence == "") {
				return usage{errors.New("--config and --evidence go together: what to judge by, and what to judge")}
			}
			if config != "" {
				now, then, err := po.offline(e, config, args[0])
				if err != nil {
					return err
				}
				return printWhatIf(e, replayFiles(cmd.Context(), evidence, now, then), all)
			}
			p, err := po.proposal(args[0])
			if err != nil {
				return err
			}
			return o.do(func(client *operator.Client) error {
				return printWhatIf(e, client.WhatIf(cmd.Context(), p), all)
			})
		},
	}
	o.addFlags(cmd)
	po.addFlags(cmd)
	cmd.Flags().StringVar(&config, "config", "", "configuration `file` of sealift serve, to judge without the service")
	cmd.Flags().StringVar(&evidence, "evidence", "", "`directory` with stored evidence (*.json), to judge without the service")
	cmd.Flags().BoolVar(&all, "all", false, "list the machines for which nothing changes, too")
	return cmd
}

// replayFiles judges each file of a directory.
func replayFiles(ctx context.Context, dir string, now, then *policySource) iter.Seq2[api.WhatIf, error] {
	return func(yield func(api.WhatIf, error) bool) {
		files, err := filepath.Glob(filepath.Join(dir, "*.json"))
		if err == nil && len(files) == 0 {
			if _, err = os.ReadDir(dir); err == nil {
				err = fmt.Errorf("%s holds no *.json", dir)
			}
		}
		sum := server.NewReplaySummary(then.document.String())
		for _, file := range files {
			if err = ctx.Err(); err != nil {
				break
			}
			var row *api.WhatIfMachine
			if row, err = replayFile(ctx, file, now, then); err != nil {
				break
			}
			sum.Add(row)
			if !yield(api.WhatIf{Machine: row}, nil) {
				return
			}
		}
		if err != nil {
			yield(api.WhatIf{}, err)
			return
		}
		yield(api.WhatIf{Summary: sum.Summary()}, nil)
	}
}

func replayFile(ctx context.Context, file string, now, then *policySource) (*api.WhatIfMachine, error) {
	stored, digest, err := readEvidence(file)
	if err != nil {
		return nil, err
	}
	a, err := now.policy(ctx, stored.Machine)
	if err != nil {
		return nil, err
	}
	b, err := then.policy(ctx, stored.Machine)
	if err != nil {
		return nil, err
	}
	row := server.Judge(stored, a, b)
	row.Evidence = digest
	return row, nil
}

// printWhatIf prints a replay. It refuses if machines would be lost.
func printWhatIf(e *env, lines iter.Seq2[api.WhatIf, error], all bool) error {
	for line, err := range lines {
		if err != nil {
			return err
		}
		if m := line.Machine; m != nil {
			if m.Effect == api.EffectNone && !all || m.Effect == api.EffectStillRefused && !all {
				continue
			}
			if err := printWhatIfMachine(e, line); err != nil {
				return err
			}
			continue
		}
		s := line.Summary
		if s == nil {
			continue
		}
		if e.json {
			if err := e.print(line, ""); err != nil {
				return err
			}
		} else if err := printWhatIfSummary(e, s); err != nil {
			return err
		}
		lost, failed, unasked := s.Effects[api.EffectRefused], s.Effects[api.EffectFailed], s.Effects[api.EffectNotAsked]
		if lost+failed+unasked > 0 {
			err := error(refused{fmt.Errorf("policy %s would refuse %d of %d machines that are allowed now, and %d could not be judged",
				s.Policy, lost, s.Machines, failed+unasked)})
			if unasked > 0 {
				err = withHint(err, "%d were not asked to prove their PCR banks: enable a policy with tpm.proveBanks: ask, and try again when they have booted", unasked)
			}
			return err
		}
		return nil
	}
	return errors.New("the replay ended without a summary")
}

func printWhatIfMachine(e *env, line api.WhatIf) error {
	if e.json {
		return e.print(line, "")
	}
	m := line.Machine
	name := m.NodeName
	if name == "" {
		name = m.ID.Short()
	}
	if m.State != attest.StateEnrolled && m.State != attest.StateUnknown {
		name += " (" + string(m.State) + ")"
	}
	if err := e.print(nil, "%s  %s  %s  %s", m.Effect, m.ID, name, plain(strings.TrimSpace(m.Vendor+" "+m.Product))); err != nil {
		return err
	}
	for _, f := range m.Reasons {
		if err := e.print(nil, "  %s: %s", f.Code, plain(f.Message)); err != nil {
			return err
		}
	}
	if m.Error != "" {
		return e.print(nil, "  %s", plain(m.Error))
	}
	return nil
}

// effects are all effects in the order in which they are printed.
func effects() []api.Effect {
	return []api.Effect{api.EffectRefused, api.EffectFailed, api.EffectNotAsked, api.EffectNoEvidence, api.EffectAllowed, api.EffectStillRefused, api.EffectNone}
}

func printWhatIfSummary(e *env, s *api.WhatIfSummary) error {
	words := map[api.Effect]string{
		api.EffectRefused: "would be refused", api.EffectFailed: "could not be judged", api.EffectNoEvidence: "have no stored evidence", api.EffectNotAsked: "were not asked for their banks",
		api.EffectAllowed: "would be allowed", api.EffectStillRefused: "stay refused", api.EffectNone: "stay allowed",
	}
	counts := func(n map[api.Effect]int) string {
		var parts []string
		for _, f := range effects() {
			if n[f] > 0 {
				parts = append(parts, fmt.Sprintf("%d %s", n[f], words[f]))
			}
		}
		if len(parts) == 0 {
			return "none"
		}
		return strings.Join(parts, ", ")
	}
	if err := e.print(nil, "\npolicy %s, %d machines: %s", s.Policy, s.Machines, counts(s.Effects)); err != nil {
		return err
	}
	for _, m := range s.Models {
		name := strings.TrimSpace(m.Vendor + " " + m.Product)
		if name == "" {
			name = "(no model known)"
		}
		if err := e.print(nil, "  %s: %s", plain(name), counts(m.Effects)); err != nil {
			return err
		}
	}
	return nil
}

// readEvidence reads stored evidence from a file.
func readEvidence(file string) (*api.StoredEvidence, manifest.SHA256, error) {
	b, err := readFile(file, api.MaxStoredEvidence)
	if err != nil {
		return nil, manifest.SHA256{}, fmt.Errorf("read evidence: %w", err)
	}
	stored, err := api.DecodeEvidence(b)
	if err != nil {
		return nil, manifest.SHA256{}, withHint(fmt.Errorf("%s: %w", file, err), "this takes evidence as the service stores it, in JSON; an event log is read with: sealift attest log %s", file)
	}
	return stored, digestOfBytes(b), nil
}

// exists reports whether there is a file of that name.
func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}
