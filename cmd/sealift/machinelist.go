package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/image/manifest"
)

// Bounds of a list of machines.
const (
	maxListLines = 100_000
	maxListSize  = 64 << 20
	// maxListFaults is how many wrong lines are shown.
	maxListFaults = 20
)

// listColumns are the columns of a list; the first two must be there.
var listColumns = []string{"serial", "ek", "model", "note"}

// listLine is a machine of a list and the line that it is from.
type listLine struct {
	api.Expected
	line int
}

// parseList reads a whole list (RFC 4180, comma or semicolon, with a header)
// before any of it is used. Its error names each wrong line, up to 20.
func parseList(file string, b []byte) ([]listLine, error) {
	b = bytes.TrimPrefix(b, []byte("\xef\xbb\xbf")) // spreadsheets write it
	r := csv.NewReader(bytes.NewReader(b))
	if first, _, _ := bytes.Cut(b, []byte("\n")); bytes.ContainsRune(first, ';') && !bytes.ContainsRune(first, ',') {
		r.Comma = ';'
	}
	header, err := r.Read()
	if err != nil {
		return nil, usage{fmt.Errorf("%s: it has no header: the first line names the columns, %s", file, strings.Join(listColumns, ","))}
	}
	column := map[string]int{}
	for i, name := range header {
		name = strings.ToLower(strings.TrimSpace(name))
		if _, twice := column[name]; twice || !slices.Contains(listColumns, name) {
			return nil, usage{fmt.Errorf("%s:1: column %q is unknown or there twice, want serial and ek, and model and note if you like", file, plain(name[:min(len(name), 40)]))}
		}
		column[name] = i
	}
	for _, name := range listColumns[:2] {
		if _, ok := column[name]; !ok {
			return nil, usage{fmt.Errorf("%s:1: column %s is missing", file, name)}
		}
	}
	var all []listLine
	var faults []string
	more := 0
	fault := func(line int, err error) {
		if len(faults) == maxListFaults {
			more++
			return
		}
		faults = append(faults, fmt.Sprintf("%s:%d: %v", file, line, err))
	}
	serials, keys := map[string]int{}, map[manifest.SHA256]int{}
	for {
		record, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			var p *csv.ParseError
			if !errors.As(err, &p) {
				return nil, err
			}
			fault(p.Line, p.Err)
			if !errors.Is(err, csv.ErrFieldCount) {
				break // what follows a broken quote is in no line
			}
			continue
		}
		line, _ := r.FieldPos(0)
		if len(all) == maxListLines {
			return nil, usage{fmt.Errorf("%s:%d: more than %d machines: split the file", file, line, maxListLines)}
		}
		field := func(name string) string {
			if i, ok := column[name]; ok {
				return strings.TrimSpace(record[i])
			}
			return ""
		}
		l := listLine{Expected: api.Expected{Serial: field("serial"), Model: field("model"), Note: field("note")}, line: line}
		if l.EK, err = parseEKDigest(field("ek")); err == nil {
			err = server.CheckExpected(&l.Expected)
		}
		if err != nil {
			fault(line, err)
			continue
		}
		key := attest.SerialKey(l.Serial)
		if other := serials[key]; other != 0 {
			fault(line, fmt.Errorf("serial number %q is in line %d, too", l.Serial, other))
			continue
		}
		if other := keys[l.EK]; other != 0 {
			fault(line, fmt.Errorf("the endorsement key is that of line %d, too", other))
			continue
		}
		serials[key], keys[l.EK] = line, line
		all = append(all, l)
	}
	if more > 0 {
		faults = append(faults, fmt.Sprintf("and %d more lines", more))
	}
	if len(faults) > 0 {
		return nil, usage{errors.New(strings.Join(faults, "\n  "))}
	}
	if len(all) == 0 {
		return nil, usage{fmt.Errorf("%s holds no machine", file)}
	}
	return all, nil
}

// parseEKDigest reads a SHA-256 of an endorsement key as lists have them: 64
// hex digits, in upper or lower case, with colons or spaces between, or with
// "sha256:" in front; or a TPM Name (Part 1, "Names"), which has 000b in front.
func parseEKDigest(s string) (manifest.SHA256, error) {
	text := strings.ToLower(s)
	text = strings.TrimPrefix(strings.TrimPrefix(text, "sha256:"), "0x")
	text = strings.NewReplacer(":", "", " ", "", "-", "").Replace(text)
	if len(text) == 68 && strings.HasPrefix(text, "000b") {
		text = text[4:]
	}
	var d manifest.SHA256
	switch {
	case len(text) == 40:
		return d, errors.New("ek has 40 hex digits, which is a SHA-1: a SHA-256 is needed")
	case len(text) == 96:
		return d, errors.New("ek has 96 hex digits, which is a SHA-384: a SHA-256 is needed")
	case len(text) != 64:
		return d, fmt.Errorf("ek has %d characters, want the 64 hex digits of a SHA-256", len(s))
	}
	if _, err := hex.Decode(d[:], []byte(text)); err != nil {
		return d, fmt.Errorf("ek: %w", err)
	}
	return d, nil
}

// importList checks a list with the service, and hands it over if apply is set.
func importList(ctx context.Context, e *env, client *operator.Client, file string, lines []listLine, apply, replace bool) error {
	counts, err := sendList(ctx, client, file, lines, false, replace)
	if err != nil {
		return err
	}
	verb := "would be"
	if apply {
		verb = "are"
		if counts, err = sendList(ctx, client, file, lines, true, replace); err != nil {
			return withHint(err, "what was taken before stays: the same file can be imported again")
		}
	}
	if e.json {
		return json.NewEncoder(e.out).Encode(map[string]any{
			"applied": apply, "added": counts[api.ExpectedAdded], "changed": counts[api.ExpectedChanged], "present": counts[api.ExpectedPresent],
		})
	}
	fmt.Fprintf(e.out, "%d machines %s added, %d %s changed, %d are expected already\n",
		counts[api.ExpectedAdded], verb, counts[api.ExpectedChanged], verb, counts[api.ExpectedPresent])
	if !apply {
		fmt.Fprintln(e.err, "sealift: nothing was changed: --apply does it")
	}
	return nil
}

// sendList sends a list in pages and counts the outcomes. Conflicts are an
// error that names their lines.
func sendList(ctx context.Context, client *operator.Client, file string, lines []listLine, apply, replace bool) (map[string]int, error) {
	counts := map[string]int{}
	var faults []string
	hint := ""
	for page := range slices.Chunk(lines, api.MaxExpected) {
		list := &api.ExpectedList{Apply: apply, Replace: replace}
		for _, l := range page {
			list.Machines = append(list.Machines, l.Expected)
		}
		answer, err := client.Expect(ctx, list)
		if err != nil {
			return nil, fmt.Errorf("%s:%d to %d: %w", file, page[0].line, page[len(page)-1].line, err)
		}
		for i, r := range answer.Results {
			counts[r.Outcome]++
			if r.Outcome == api.ExpectedConflict && len(faults) < maxListFaults {
				faults = append(faults, fmt.Sprintf("%s:%d: %s", file, page[i].line, plain(r.Problem)))
				if hint == "" {
					hint = r.Hint
				}
			}
		}
		if apply && len(faults) > 0 {
			break
		}
	}
	n := counts[api.ExpectedConflict]
	if n == 0 {
		return counts, nil
	}
	if n > len(faults) {
		faults = append(faults, fmt.Sprintf("and %d more lines", n-len(faults)))
	}
	err := error(refused{errors.New(strings.Join(faults, "\n  "))})
	if hint != "" {
		err = withHint(err, "%s", hint)
	}
	return nil, err
}

func newMachineExpectedCommand(e *env) *cobra.Command {
	var o operatorOptions
	cmd := &cobra.Command{
		Use:   "expected",
		Short: "List the machines that were enrolled beforehand",
		Long: `Lists the machines that lists named, with the machine that has shown up for each.
With --json, one object a line.

Example:
  sealift machine expected` + exitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.do(func(client *operator.Client) error {
				all, err := client.Expected(cmd.Context())
				if err != nil {
					return err
				}
				return printExpected(e, all)
			})
		},
	}
	o.addFlags(cmd)
	return cmd
}

func printExpected(e *env, all []api.Expected) error {
	if e.json {
		enc := json.NewEncoder(e.out)
		for _, x := range all {
			if err := enc.Encode(x); err != nil {
				return err
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(e.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "SERIAL\tEK\tMACHINE\tBY\tAT\tMODEL\tNOTE")
	for _, x := range all {
		machine := "not seen"
		switch {
		case x.Withdrawn:
			machine = "withdrawn"
		case !x.Machine.IsZero():
			machine = x.Machine.String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", plain(x.Serial), x.EK, machine, plain(x.By), x.At.UTC().Format(time.RFC3339), plain(x.Model), plain(x.Note))
	}
	return w.Flush()
}

func newMachineWithdrawCommand(e *env) *cobra.Command {
	var o operatorOptions
	cmd := &cobra.Command{
		Use:   "withdraw SERIAL EK",
		Short: "No longer expect a machine that has not shown up",
		Long: `Takes back what a list said of a machine, e.g. because it was lost on the way. A
machine that has shown up is revoked instead.

Example:
  sealift machine withdraw CZ1234ABCD 6f0c...e1` + exitStatus,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ek, err := parseEKDigest(args[1])
			if err != nil {
				return usage{err}
			}
			return o.do(func(client *operator.Client) error {
				x := api.Expected{Serial: args[0], EK: ek, Withdrawn: true}
				answer, err := client.Expect(cmd.Context(), &api.ExpectedList{Machines: []api.Expected{x}, Apply: true})
				if err != nil {
					return err
				}
				if r := answer.Results[0]; r.Outcome != api.ExpectedWithdrawn {
					return withHint(refused{errors.New(plain(r.Problem))}, "%s", cmp.Or(r.Hint, "sealift machine expected shows what is expected"))
				}
				return printExpected(e, []api.Expected{x})
			})
		},
	}
	o.addFlags(cmd)
	return cmd
}

func newMachineReEnrolCommand(e *env) *cobra.Command {
	var o operatorOptions
	var from, to, reason string
	cmd := &cobra.Command{
		Use:   "re-enrol --old ID --new ID",
		Short: "Give a machine's name and serial number to another TPM",
		Long: `For a machine whose mainboard or TPM was exchanged. The old identity is revoked; its
node name and serial number go to the new one, which is enrolled, gets a disk key of
its own, and joins anew. The disk of the old one does not open with the new TPM:
install the machine again. The kubelet certificate of the old one has the same node
name and is good until it runs out.

It is also for a TPM that is to be known by another of its endorsement keys, as its
former certificate is gone (machine.tpm-taken). The new identity must have been given
nothing yet. Two that were, and are proven to be one TPM, become one: the old identity
is revoked, and the new one stays what it is.

Example:
  sealift machine re-enrol --old 6f0c...e1 --new 91ab...07 --reason 'board exchanged, ticket 4711'` + exitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			old, err := parseMachine(from)
			if err != nil {
				return err
			}
			next, err := parseMachine(to)
			if err != nil {
				return err
			}
			return o.do(func(client *operator.Client) error {
				m, err := client.ReEnrol(cmd.Context(), old, next, reason)
				if err != nil {
					return err
				}
				return printMachines(e, []api.Machine{*m})
			})
		},
	}
	o.addFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&from, "old", "", "`ID` of the identity that is given up (required)")
	f.StringVar(&to, "new", "", "`ID` of the one that takes its place (required)")
	f.StringVar(&reason, "reason", "", "why, for the audit log (required)")
	required(cmd, "old", "new", "reason")
	return cmd
}
