package redteam

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client/operator"
)

// maxAnswer bounds what is read of an answer, bytes.
const maxAnswer = 1 << 20

// stateAttacks are good evidence of a machine that must not be given secrets,
// or not again.
func stateAttacks() []Attack {
	return []Attack{
		{
			Name: "machine-unknown", What: "a machine that nobody enrolled",
			Reference: "Parno, Bootstrapping Trust in a Trusted Platform, HotSec 2008",
			Want:      want(attest.CodeMachineUnknown, attest.CodeMachinePending),
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, err := l.stranger()
				if err != nil {
					return nil, err
				}
				return b.attest(ctx, nil)
			},
		},
		{
			Name: "machine-revoked", What: "a machine that was revoked, in its next boot",
			Reference: "Schear et al., Bootstrapping and Maintaining Trust in the Cloud, ACSAC 2016",
			Want:      want(attest.CodeMachineRevoked), Accepted: true,
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, err := l.revoked(ctx)
				if err != nil {
					return nil, err
				}
				return b.attest(ctx, nil)
			},
		},
		{
			Name: "machine-revoked-in-between", What: "a machine that was revoked after it was given a challenge",
			Reference: "CWE-367",
			Want:      want(attest.CodeMachineRevoked), Accepted: true,
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, err := l.box(ctx)
				if err != nil {
					return nil, err
				}
				return b.attest(ctx, func(x *exchange) error {
					_, err := l.Owner.Revoke(ctx, x.machine, reason)
					return err
				})
			},
		},
		{
			Name: "revoked-machine-installed-again", What: "an install record brings a revoked machine back",
			Reference: "CVE-2025-13609",
			Want:      []string{"conflict"}, Accepted: true,
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, err := l.revoked(ctx)
				if err != nil {
					return nil, err
				}
				err = b.enrol(ctx)
				var refusal *operator.Error
				if errors.As(err, &refusal) {
					return &answer{codes: []string{refusal.Answer.Code}, text: refusal.Error()}, nil
				}
				if err != nil {
					return nil, err
				}
				return b.attest(ctx, nil)
			},
		},
		{
			Name: "two-releases-in-one-boot", What: "a machine asks again in the boot in which it was given its secrets",
			Reference: "CWE-837",
			Want:      want(attest.CodeReleaseRepeated), Accepted: true,
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, _, err := l.released(ctx)
				if err != nil {
					return nil, err
				}
				b.tpm.Clock.Clock += 1000
				return b.attest(ctx, nil)
			},
		},
		{
			Name: "two-releases-at-once", What: "a machine asks twice at the same time",
			Reference: "CWE-362, CWE-837",
			Want:      want(attest.CodeReleaseRepeated), Accepted: true,
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, err := l.box(ctx)
				if err != nil {
					return nil, err
				}
				var open []*exchange
				for range 2 {
					x, err := b.prepare(ctx)
					if err != nil {
						return nil, err
					}
					defer func() { _ = x.session.Close() }()
					open = append(open, x)
				}
				type result struct {
					a   *answer
					err error
				}
				results := make(chan result)
				for _, x := range open {
					go func() {
						a, err := x.send(ctx)
						results <- result{a, err}
					}()
				}
				first, second := <-results, <-results
				if err := errors.Join(first.err, second.err); err != nil {
					return nil, err
				}
				if first.a.release == nil {
					first, second = second, first
				}
				if first.a.release == nil {
					return nil, fmt.Errorf("neither was given a release: %s; %s", first.a.text, second.a.text)
				}
				return second.a, nil
			},
		},
		{
			Name: "counters-turned-back", What: "a TPM whose reset counter is lower than before: a copied state of a TPM in software",
			Reference: "Parno et al., Memoir: Practical State Continuity for Protected Modules, IEEE S&P 2011",
			Want:      want(attest.CodeClock), Accepted: true,
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, _, err := l.released(ctx)
				if err != nil {
					return nil, err
				}
				b.tpm.Clock.ResetCount--
				return b.attest(ctx, nil)
			},
		},
		{
			Name: "tpm-firmware-turned-back", What: "a TPM with an older firmware than before",
			Reference: "CVE-2017-15361 (ROCA), CVE-2025-2884: what an older firmware of the TPM has",
			Want:      want(attest.CodeTPMFirmware), Accepted: true,
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, _, err := l.released(ctx)
				if err != nil {
					return nil, err
				}
				b.tpm.Reset()
				b.tpm.Firmware--
				return b.attest(ctx, nil)
			},
		},
		{
			Name: "stolen-disk", What: "a disk in another box than the one it was installed in",
			Reference: "Microsoft, BitLocker overview: a disk that is moved to another computer",
			Want:      want(attest.CodeDiskForeign), Accepted: true,
			run: func(ctx context.Context, l *lab) (*answer, error) {
				victim, _, err := l.released(ctx)
				if err != nil {
					return nil, err
				}
				thief, err := l.box(ctx)
				if err != nil {
					return nil, err
				}
				thief.boot = victim.boot
				return thief.attest(ctx, nil)
			},
		},
		{
			Name: "disk-claimed", What: "a machine says that it booted from another disk than firmware measured",
			Reference: "TCG PC Client Platform Firmware Profile, EV_EFI_GPT_EVENT",
			Want:      want(attest.CodeDiskForeign),
			run: sent(func(b *box) error {
				b.boot.Disk.GUID = newGUID()
				return nil
			}, nil),
		},
		{
			Name: "state-planted", What: "the state partition with its LUKS2 header is gone, so that a new one would be made or an own one be taken",
			Reference: "CVE-2025-59054, CVE-2025-58356",
			Want:      want(attest.CodeStateLost), Accepted: true,
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, err := l.box(ctx)
				if err != nil {
					return nil, err
				}
				if b.boot, err = b.boot.OnDisk(b.boot.Disk.GUID, true); err != nil {
					return nil, err
				}
				if _, err := b.release(ctx); err != nil {
					return nil, err
				}
				b.tpm.Reset()
				if b.boot, err = b.boot.OnDisk(b.boot.Disk.GUID, false); err != nil {
					return nil, err
				}
				return b.attest(ctx, nil)
			},
		},
	}
}

// revoked returns a machine that was given its secrets, was revoked, and is in
// its next boot.
func (l *lab) revoked(ctx context.Context) (*box, error) {
	b, _, err := l.released(ctx)
	if err != nil {
		return nil, err
	}
	id, err := b.tpm.MachineID()
	if err != nil {
		return nil, err
	}
	if _, err := l.Owner.Revoke(ctx, id, reason); err != nil {
		return nil, err
	}
	b.tpm.Reset()
	return b, nil
}

// serviceAttacks are not about evidence.
func serviceAttacks() []Attack {
	return []Attack{
		{
			Name: "operator-api-from-the-node-network", What: "the operator API is asked for on the listener of the nodes",
			Reference: "CVE-2026-1709",
			Want:      []string{codeNoRoute},
			run: func(ctx context.Context, l *lab) (*answer, error) {
				var all []string
				for _, path := range []string{api.PathMachines, api.PathAudit, api.PathCampaigns, api.PathInstalls} {
					for _, method := range []string{http.MethodGet, http.MethodPost} {
						status, body, err := l.ask(ctx, method, strings.TrimSuffix(l.Client.URL, "/")+path, []byte("{}"))
						if err != nil {
							return nil, err
						}
						if status != http.StatusNotFound {
							return &answer{codes: []string{fmt.Sprintf("http-%d", status)}, text: fmt.Sprintf("%s %s: %.200s", method, path, body)}, nil
						}
						all = append(all, method+" "+path)
					}
				}
				return &answer{codes: []string{codeNoRoute}, text: "not found: " + strings.Join(all, ", ")}, nil
			},
		},
		{
			Name: "operator-api-without-identity", What: "the operator API is asked without a client certificate or token",
			Reference: "CVE-2026-1709",
			Want:      []string{codeNoIdentity},
			run: func(ctx context.Context, l *lab) (*answer, error) {
				if l.Operators == "" {
					return nil, notRun("the operator API is not known: give --server")
				}
				status, body, err := l.ask(ctx, http.MethodGet, strings.TrimSuffix(l.Operators, "/")+api.PathMachines, nil)
				switch {
				case err != nil && strings.Contains(err.Error(), "remote error: tls: certificate required"):
					return &answer{codes: []string{codeNoIdentity}, text: err.Error()}, nil
				case err != nil:
					return nil, err
				case status == http.StatusUnauthorized || status == http.StatusForbidden:
					return &answer{codes: []string{codeNoIdentity}, text: fmt.Sprintf("HTTP %d: %.200s", status, body)}, nil
				}
				return &answer{codes: []string{fmt.Sprintf("http-%d", status)}, text: fmt.Sprintf("%.200s", body)}, nil
			},
		},
		{
			Name: "release-confirmed-by-a-stranger", What: "a release is confirmed without its transport secret",
			Reference: "CWE-639",
			Want:      []string{"confirm-refused"}, Accepted: true,
			run: func(ctx context.Context, l *lab) (*answer, error) {
				_, r, err := l.released(ctx)
				if err != nil {
					return nil, err
				}
				err = l.Client.Confirm(ctx, make(attest.Secret, api.TransportSecretSize), r.ID, api.OutcomeUnlocked)
				if err == nil {
					return &answer{codes: []string{}, text: "the confirmation was taken", release: r}, nil
				}
				if a := new(answer); a.of(err) {
					return a, nil
				}
				return nil, err
			},
		},
		{
			Name: "evidence-of-megabytes", What: "a body that is larger than any evidence",
			Reference: "CWE-770",
			Want:      []string{"too-large"},
			run: func(ctx context.Context, l *lab) (*answer, error) {
				return l.post(ctx, api.PathEvidence, bytes.Repeat([]byte(" "), api.MaxEvidenceBody+1))
			},
		},
		{
			Name: "json-bomb", What: "a small body of a million values",
			Reference: "CVE-2019-11253",
			Want:      []string{"bad-request"},
			run: func(ctx context.Context, l *lab) (*answer, error) {
				return l.post(ctx, api.PathEvidence, []byte(`{"evidence":{"quotes":[`+strings.Repeat("{},", 1<<20)+`{}]}}`))
			},
		},
		{
			Name: "trailing-bytes", What: "structures of the TPM with bytes behind their end",
			Reference: "CVE-2006-4339",
			Want:      want(attest.CodeMalformed),
			run: sent(nil, func(x *exchange) error {
				for i := range x.request.Evidence.Quotes {
					x.request.Evidence.Quotes[i].Signature = append(x.request.Evidence.Quotes[i].Signature, 0)
				}
				return nil
			}),
		},
		{
			Name: "noise", What: "random bytes in each field of the evidence",
			Reference: "GHSA-hcm6-rjfh-f25p (go-attestation)",
			Want:      want(attest.CodeMalformed, attest.CodeChallenge),
			run: sent(nil, func(x *exchange) error {
				ev := &x.request.Evidence
				for _, field := range []*[]byte{
					&ev.EventLog, &ev.SMBIOS, &ev.Transport.Public, &ev.Transport.CreationData, &ev.Transport.Certify,
					&ev.Transport.Signature, &ev.Quotes[0].Attest, &ev.Quotes[0].Signature,
				} {
					*field = make([]byte, len(*field))
					// crypto/rand.Read never fails.
					_, _ = rand.Read(*field)
				}
				return nil
			}),
		},
		{
			Name: "key-that-is-no-key", What: "a challenge for an endorsement key whose point is not on its curve",
			Reference: "CVE-2015-7940",
			Want:      []string{"bad-request"},
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, err := l.stranger()
				if err != nil {
					return nil, err
				}
				ek := tpm2.Marshal(b.tpm.EKPublic)
				ek[len(ek)-1] ^= 1
				body, err := json.Marshal(&api.ChallengeRequest{
					Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: ek, EKCertificates: b.tpm.EKCertificates, AKPublic: tpm2.Marshal(b.tpm.AKPublic),
				})
				if err != nil {
					return nil, err
				}
				return l.post(ctx, api.PathChallenge, body)
			},
		},
	}
}

// ask makes one request without an identity.
func (l *lab) ask(ctx context.Context, method, url string, body []byte) (status int, answer []byte, err error) {
	tr := &http.Transport{TLSClientConfig: l.TLS, DialContext: l.Client.Dial}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	resp, err := (&http.Client{Transport: tr, Timeout: l.Client.Timeout}).Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return resp.StatusCode, answer, err
}

// post sends a body to the node API and takes the error that answers it.
func (l *lab) post(ctx context.Context, path string, body []byte) (*answer, error) {
	status, b, err := l.ask(ctx, http.MethodPost, strings.TrimSuffix(l.Client.URL, "/")+path, body)
	if err != nil {
		return nil, err
	}
	var e api.Error
	if err := json.Unmarshal(b, &e); err != nil || e.Code == "" {
		return nil, fmt.Errorf("HTTP %d without an error's body: %.200s", status, b)
	}
	return &answer{codes: []string{e.Code}, text: fmt.Sprintf("HTTP %d: %s", status, e.Message)}, nil
}
