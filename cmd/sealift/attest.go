package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest"
)

func newAttestCommand(e *env) *cobra.Command {
	return newGroup("attest", "Read what a machine measured in its boot", `
Shows measured boot for people: what an event log says, and why a machine was
refused. It decides nothing: 'sealift serve' appraises evidence by itself and
strictly, and 'redteam' tries whether it does.`, `
  sealift attest log /sys/kernel/security/tpm0/binary_bios_measurements`,
		newAttestLogCommand(e), newAttestExplainCommand(e),
		newAttestRedteamCommand(e))
}

func newAttestLogCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "log FILE",
		Short: "Decode and replay a TCG event log",
		Long: `Decodes a TCG event log, crypto-agile or of the older SHA-1 format, and computes
the PCR values to which it leads, in each bank. FILE may be - for standard input,
or the log of this machine in /sys/kernel/security. It reads the logs of real
machines: what the strict verifier of the service refuses, or a person should
know, is listed below the events as a quirk.

For each event it says whether the digest is of the event's own data
(authenticated), of something else that the data only describes (digest-only), or
nothing was measured (hint). All this presumes that the PCR values are the TPM's:
compare them with a quote, or on the machine with tpm2_pcrread. The type of an
event is never measured.

With --json it writes one object; docs/event-logs.md describes it.

Example:
  sealift attest log /sys/kernel/security/tpm0/binary_bios_measurements
  sealift attest log saved.bin --json | jq -r '.pcrs.sha256["7"]'

EXIT STATUS
  0  the whole log was read
  1  the file could not be read, or is too large
  2  the command line is wrong
  3  it is no event log, or it is damaged; what could be read was printed`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return attestLog(e, args[0]) },
	}
}

func attestLog(e *env, name string) error {
	b, err := readLog(e, name)
	if err != nil {
		return fmt.Errorf("read the event log: %w", err)
	}
	if name == "-" {
		name = "standard input"
	}
	l, err := attest.DecodeLog(b)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if e.json {
		err = json.NewEncoder(e.out).Encode(newLogJSON(l))
	} else if len(l.Events) > 0 {
		err = printLog(e.out, l)
	}
	if err != nil {
		return fmt.Errorf("write the events: %w", err)
	}
	if d := l.Damage; d != nil {
		err := refused{fmt.Errorf("%s: event %d at offset %d of %d bytes cannot be read: %s", name, d.Event, d.Offset, l.Size, d.Reason)}
		if len(l.Events) == 0 {
			return withHint(err, "is this a TCG event log?")
		}
		return withHint(err, "the %d events before it were read; the PCR values are only of these", len(l.Events))
	}
	return nil
}

// readLog reads all of a log. The kernel's file tells no size.
func readLog(e *env, name string) ([]byte, error) {
	if name != "-" {
		return readFile(name, attest.MaxDecodedLog)
	}
	b, err := io.ReadAll(io.LimitReader(e.in, attest.MaxDecodedLog+1))
	if err == nil && len(b) > attest.MaxDecodedLog {
		err = fmt.Errorf("it is larger than %d bytes", attest.MaxDecodedLog)
	}
	return b, err
}

// logJSON is the output of --json. docs/event-logs.md describes it; names are
// stable, and fields may be added.
type logJSON struct {
	Format          string                       `json:"format"`
	Size            int                          `json:"size"`
	Spec            *specJSON                    `json:"spec,omitempty"`
	Banks           []bankJSON                   `json:"banks"`
	StartupLocality byte                         `json:"startup_locality"`
	PCRs            map[string]map[string]string `json:"pcrs"`
	Events          []eventJSON                  `json:"events"`
	Quirks          []quirkJSON                  `json:"quirks"`
	Damage          *damageJSON                  `json:"damage,omitempty"`
}

type specJSON struct {
	Signature     string `json:"signature"`
	Version       string `json:"version"`
	Errata        byte   `json:"errata"`
	PlatformClass uint32 `json:"platform_class"`
	VendorInfo    string `json:"vendor_info"`
}

type bankJSON struct {
	Name      string `json:"name"`
	Algorithm uint16 `json:"algorithm"`
	Size      int    `json:"size"`
	Replayed  bool   `json:"replayed"`
}

type eventJSON struct {
	Number     int               `json:"number"`
	Offset     int               `json:"offset"`
	PCR        uint32            `json:"pcr"`
	Type       string            `json:"type"`
	TypeNumber uint32            `json:"type_number"`
	Digests    map[string]string `json:"digests"`
	Trust      attest.DataTrust  `json:"trust"`
	Covers     string            `json:"covers,omitempty"`
	Text       string            `json:"text"`
	Data       string            `json:"data"`
}

type quirkJSON struct {
	Code   attest.QuirkCode `json:"code"`
	Text   string           `json:"text"`
	Count  int              `json:"count"`
	Events []int            `json:"events"`
}

type damageJSON struct {
	Offset int    `json:"offset"`
	Event  int    `json:"event"`
	Reason string `json:"reason"`
}

func newLogJSON(l *attest.UntrustedLog) *logJSON {
	j := &logJSON{
		Format: l.Format, Size: l.Size, StartupLocality: l.StartupLocality,
		Banks: []bankJSON{}, PCRs: map[string]map[string]string{}, Events: []eventJSON{}, Quirks: []quirkJSON{},
	}
	if s := l.Spec; s != nil {
		j.Spec = &specJSON{s.Signature, fmt.Sprintf("%d.%d", s.Major, s.Minor), s.Errata, s.PlatformClass, hex.EncodeToString(s.VendorInfo)}
	}
	for _, b := range l.Banks {
		j.Banks = append(j.Banks, bankJSON{b.Name, b.Algorithm, b.Size, b.Replayed()})
		if !b.Replayed() {
			continue
		}
		values := map[string]string{}
		for pcr, value := range l.PCRs(b.Name) {
			values[strconv.Itoa(pcr)] = hex.EncodeToString(value)
		}
		j.PCRs[b.Name] = values
	}
	for i := range l.Events {
		ev := &l.Events[i]
		digests := map[string]string{}
		for k, d := range ev.Digests {
			if d != nil {
				digests[l.Banks[k].Name] = hex.EncodeToString(d)
			}
		}
		j.Events = append(j.Events, eventJSON{
			Number: ev.Number, Offset: ev.Offset, PCR: ev.PCR, Type: ev.UntrustedType.SpecName(), TypeNumber: uint32(ev.UntrustedType),
			Digests: digests, Trust: ev.Trust, Covers: ev.Covers, Text: ev.Text, Data: hex.EncodeToString(ev.UntrustedData),
		})
	}
	for _, q := range l.Quirks {
		j.Quirks = append(j.Quirks, quirkJSON{q.Code, q.Text, q.Count, append([]int{}, q.Events...)})
	}
	if d := l.Damage; d != nil {
		j.Damage = &damageJSON{d.Offset, d.Event, d.Reason}
	}
	return j
}

// shownDigest is how much of a digest the table shows, bytes.
const shownDigest = 8

// printLog writes the events as a table, with the digests of one bank, then the
// PCR values and the quirks.
func printLog(out io.Writer, l *attest.UntrustedLog) error {
	var banks []string
	for _, b := range l.Banks {
		banks = append(banks, b.Name)
	}
	shown := max(0, slices.Index(banks, "sha256"))
	fmt.Fprintf(out, "%s event log, %d bytes, %d events, banks %s\n\n", l.Format, l.Size, len(l.Events), strings.Join(banks, " "))

	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintf(w, "PCR\tEVENT\tTYPE\t%s\tDATA\tWHAT\n", strings.ToUpper(banks[shown]))
	for i := range l.Events {
		ev := &l.Events[i]
		pcr, digest := fmt.Sprint(ev.PCR), "none"
		if d := ev.Digests[shown]; d != nil {
			digest = hex.EncodeToString(d[:min(shownDigest, len(d))])
		}
		if ev.Trust == attest.DataHint {
			pcr, digest = "-", "-"
		}
		text := ev.Text
		if ev.Covers != "" && ev.Covers != attest.CoversAll {
			text += " (measured: " + ev.Covers + ")"
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", pcr, ev.Number, ev.UntrustedType, digest, ev.Trust, text)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, b := range l.Banks {
		if !b.Replayed() {
			continue
		}
		fmt.Fprintf(out, "\n%s\n", b.Name)
		pcrs := l.PCRs(b.Name)
		for _, pcr := range slices.Sorted(maps.Keys(pcrs)) {
			fmt.Fprintf(out, "  %2d  %x\n", pcr, pcrs[pcr])
		}
	}
	if len(l.Quirks) > 0 {
		fmt.Fprintln(out, "\nquirks")
	}
	for _, q := range l.Quirks {
		if _, err := fmt.Fprintf(out, "  %s%s: %s\n", q.Code, eventsOf(q), q.Text); err != nil {
			return err
		}
	}
	return nil
}

// eventsOf names the events that have a quirk.
func eventsOf(q attest.LogQuirk) string {
	if q.Count == 0 {
		return ""
	}
	var numbers []string
	for _, n := range q.Events {
		numbers = append(numbers, strconv.Itoa(n))
	}
	text := " (event " + strings.Join(numbers, ", ")
	if q.Count > 1 {
		text = " (events " + strings.Join(numbers, ", ")
	}
	if more := q.Count - len(q.Events); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text + ")"
}
