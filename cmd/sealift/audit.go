package main

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/image/manifest"
)

func newAuditCommand(e *env) *cobra.Command {
	return newGroup("audit", "Export and verify the log of decisions", `
The service chains each of its decisions to the one before by hash, and signs where
the log ends. An exported log is checked anywhere, with nothing but the service's
public release key. docs/audit.md has how to do that without this program.`, `
  sealift audit export --out audit.jsonl
  sealift audit verify audit.jsonl --key release.pub`,
		newAuditExportCommand(e), newAuditVerifyCommand(e))
}

func newAuditExportCommand(e *env) *cobra.Command {
	var o operatorOptions
	var from int64
	var out string
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write the audit log, one JSON object a line",
		Long: `Writes every decision that the service made, with the hash that chains each entry
to the one before. The last line is where the log ends, signed by the service with
its release key: it proves to whoever has release.pub that the service wrote what is
before it, up to that time. Keep exports, or their last hash, somewhere else: they
prove later that the log was not cut short or written anew. With --out the file is
there whole or not at all.

A service that finds its log altered signs nothing (exit 3).

Example:
  sealift audit export --out audit.jsonl` + exitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if from < 1 {
				return usage{fmt.Errorf("--from is %d, want 1 or more", from)}
			}
			return o.do(func(client *operator.Client) error {
				write := func(w io.Writer) error { return exportAudit(cmd.Context(), client, from, w) }
				if out == "" {
					return write(e.out)
				}
				return writeFile(out, 0o600, write)
			})
		},
	}
	o.addFlags(cmd)
	cmd.Flags().Int64Var(&from, "from", 1, "number of the first entry")
	cmd.Flags().StringVar(&out, "out", "", "`file` to write (default: standard output)")
	return cmd
}

// exportAudit writes the log up to where the service signs that it ends. What is
// written is one chain that ends there.
func exportAudit(ctx context.Context, client *operator.Client, from int64, w io.Writer) error {
	signed, err := client.AuditHead(ctx)
	var answer *operator.Error
	switch {
	case errors.As(err, &answer) && answer.Status == http.StatusNotFound:
		return withHint(fmt.Errorf("the service does not sign where its log ends: %w", err), "it is of an earlier version: update it")
	case errors.As(err, &answer) && answer.Status == http.StatusConflict:
		return refused{err}
	case err != nil:
		return err
	}
	s, err := signed.UnverifiedHead()
	if err != nil {
		return fmt.Errorf("the signed head of the audit log: %w", err)
	}
	if from > s.Head.Seq {
		return usage{fmt.Errorf("--from is %d, and the log ends with entry %d", from, s.Head.Seq)}
	}
	var line []byte
	var chain *audit.Verifier
	for entry, err := range client.Audit(ctx, from, attest.MachineID{}) {
		if err != nil {
			return err
		}
		if chain == nil {
			chain = audit.VerifierAt(audit.Head{Seq: from - 1, Hash: entry.Prev})
		}
		if err := chain.Add(entry); err != nil {
			return refused{err}
		}
		if line, err = audit.AppendLine(line[:0], entry); err != nil {
			return err
		}
		if _, err := w.Write(line); err != nil {
			return fmt.Errorf("write the audit log: %w", err)
		}
		if entry.Seq == s.Head.Seq {
			break
		}
	}
	if chain == nil || chain.Head() != s.Head {
		return refused{fmt.Errorf("the service's log does not have the entry %d, %s, with which it says that the log ends", s.Head.Seq, s.Head.Hash)}
	}
	if line, err = audit.AppendSigned(line[:0], signed); err != nil {
		return err
	}
	if _, err := w.Write(line); err != nil {
		return fmt.Errorf("write the audit log: %w", err)
	}
	return nil
}

type verifyAuditOptions struct {
	key, head string
	chainOnly bool
	from      int64
}

func newAuditVerifyCommand(e *env) *cobra.Command {
	var o verifyAuditOptions
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Find out whether an exported log is what the service wrote",
		Long: `Checks the hash chain of a log that 'sealift audit export' wrote from its first
entry on, and that it is the service's: with --key, the public release key, that its
last line is signed by the service and names the last entry; or with --head that it
ends with the hash that was kept elsewhere. Needs no service. FILE may be - for
standard input.

The chain alone proves nothing of who wrote it: anybody can make one. Without --key
and --head a log is refused; --chain-only checks the chain and takes that.

A log from before the release key was changed is signed with the former one: give its
public half as --key.

What was decided after the time of the signature is not in the log. A signed head
proves that the service wrote this log, and not that there is no later one.

Example:
  sealift audit verify audit.jsonl --key release.pub
  sealift audit verify part.jsonl --key release.pub --from 5001

EXIT STATUS
  0  it is as the service wrote it; with --chain-only, it is a chain
  1  it failed
  2  the command line, or the key, is wrong
  3  it was altered, or nothing shows that the service wrote it`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.from < 1 {
				return usage{fmt.Errorf("--from is %d, want 1 or more", o.from)}
			}
			if o.chainOnly && (o.key != "" || o.head != "") {
				return usage{errors.New("--chain-only is for a log of which nothing else is to be shown: leave it out with --key and --head")}
			}
			if args[0] == "-" {
				return verifyAudit(cmd.Context(), e, &o, "the log", e.in)
			}
			f, err := os.Open(args[0])
			if err != nil {
				return fmt.Errorf("open the audit log: %w", err)
			}
			defer f.Close() // only read
			return verifyAudit(cmd.Context(), e, &o, args[0], f)
		},
	}
	cmd.Flags().StringVar(&o.key, "key", "", "PEM `file` with the public release key of the service (release.pub)")
	cmd.Flags().StringVar(&o.head, "head", "", "`hash` that the last entry must have")
	cmd.Flags().BoolVar(&o.chainOnly, "chain-only", false, "check the chain alone, which does not show who wrote it")
	cmd.Flags().Int64Var(&o.from, "from", 1, "number of the first entry, if the log was exported with --from")
	return cmd
}

func verifyAudit(ctx context.Context, e *env, o *verifyAuditOptions, name string, r io.Reader) error {
	var want manifest.SHA256
	if err := want.UnmarshalText([]byte(o.head)); err != nil {
		return usage{fmt.Errorf("--head: %w", err)}
	}
	var key *ecdsa.PublicKey
	if o.key != "" {
		var err error
		if key, err = readReleaseKey(o.key); err != nil {
			return err
		}
	}
	log := audit.NewReader(r)
	head, n, err := verifyChain(log, o.from)
	switch {
	case errors.As(err, new(*audit.BrokenError)):
		return withHint(refused{fmt.Errorf("%s is not as it was written: %w", name, err)}, "the %d entries before it are intact; compare with another export", n)
	case err != nil:
		return err
	case ctx.Err() != nil: // a Ctrl-C that ended the other side of a pipe has cut the log
		return ctx.Err()
	case n == 0:
		return refused{fmt.Errorf("%s holds no entries, so it proves nothing", name)}
	case !want.IsZero() && head.Hash != want:
		return withHint(refused{fmt.Errorf("%s does not end where it should: its head is %s, --head is %s", name, head.Hash, want)},
			"it was cut short or written anew, or it is longer than when --head was kept")
	}
	result := verifiedAudit{Entries: n, From: o.from, Head: head}
	text := fmt.Sprintf("%d entries intact, head %s", n, head.Hash)
	switch signed := log.Signed(); {
	case key != nil && signed == nil:
		return withHint(refused{fmt.Errorf("%s has no signed head: nothing shows that the service wrote it, or that it was not cut short", name)},
			"export it again with a service of this version")
	case key != nil:
		var s audit.HeadStatement
		if err := signed.Open(key, audit.HeadType, &s); err != nil {
			return withHint(refused{fmt.Errorf("the signed head of %s: %w", name, err)}, "another service wrote it, or it was made up; one from before the release key was changed needs the public key of then")
		}
		if s.Head != head {
			return refused{fmt.Errorf("%s ends with entry %d, %s, and the service signed that it ends with entry %d, %s", name, head.Seq, head.Hash, s.Head.Seq, s.Head.Hash)}
		}
		result.Signed = &signedAudit{Time: s.Time, Key: signed.SignedBy()}
		text += fmt.Sprintf("\nsigned by the service at %s", s.Time.Format(time.RFC3339))
	case !want.IsZero():
		text += "\nends with the hash that was given"
	case o.chainOnly:
		text += "\nnot shown: that the service wrote it, and that it is all there"
	default:
		return withHint(refused{fmt.Errorf("%s is a chain of %d entries, and nothing shows that the service wrote it, or that it was not cut short: anybody can make such a file", name, n)},
			"give the service's public release key (--key release.pub) or the last hash, if it was kept elsewhere (--head HASH); --chain-only checks the chain alone")
	}
	return e.print(result, "%s", text)
}

// verifiedAudit is what was shown of a log. Without Signed no signature was verified.
type verifiedAudit struct {
	Entries int64        `json:"entries"`
	Head    audit.Head   `json:"head"`
	From    int64        `json:"from"` // number of the first
	Signed  *signedAudit `json:"signed,omitempty"`
}

type signedAudit struct {
	Time time.Time `json:"time"`
	Key  string    `json:"key"` // its id
}

// verifyChain verifies the entries of a log that begins with entry from, and returns
// its head and the number of entries that verified.
func verifyChain(log *audit.Reader, from int64) (audit.Head, int64, error) {
	chain := new(audit.Verifier)
	var n int64
	for entry, err := range log.Entries() {
		if err == nil && n == 0 && from > 1 {
			// What is before is not there: it is taken to follow what it says.
			chain = audit.VerifierAt(audit.Head{Seq: from - 1, Hash: entry.Prev})
		}
		if err == nil {
			err = chain.Add(entry)
		}
		if err != nil {
			return chain.Head(), n, err
		}
		n++
	}
	return chain.Head(), n, nil
}
