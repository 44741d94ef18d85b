package attest_test

import (
	"bytes"
	"crypto"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"

	. "github.com/sealift/sealift/attest"
)

// publicLogs returns the event logs that go-eventlog is tested with, those of
// go-attestation among them, by their name. They are read where the module is.
func publicLogs(t *testing.T) map[string][]byte {
	t.Helper()
	out, err := exec.Command(tool(t, "go"), "list", "-m", "-f", "{{.Dir}}", "github.com/google/go-eventlog").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "testdata")
	logs := map[string][]byte{}
	for _, pattern := range []string{"eventlogs/tpm/*.bin", "legacydata/*eventlog"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			logs[filepath.Base(f)] = b
		}
	}
	if len(logs) < 18 {
		t.Fatalf("only %d logs in %s", len(logs), dir)
	}
	return logs
}

// Another reader of event logs sees the same events in the same order, and finds
// that they lead to the values that ours computes and to no other.
func TestPublicLogsReplayAsInGoEventlog(t *testing.T) {
	strict := 0
	for name, raw := range publicLogs(t) {
		t.Run(name, func(t *testing.T) {
			theirs, err := tcg.ParseEventLog(raw, tcg.ParseOpts{})
			if err != nil {
				t.Fatal(err)
			}
			ours := mustDecode(t, raw)
			for _, alg := range theirs.Algs {
				bank := map[register.HashAlg]string{register.HashSHA1: "sha1", register.HashSHA256: "sha256", register.HashSHA384: "sha384"}[alg]
				compareEvents(t, ours, bank, theirs.Events(alg))
				values := ours.PCRs(bank)
				if len(values) == 0 {
					t.Errorf("bank %s: no PCR", bank)
				}
				var mrs []register.MR
				for pcr, value := range values {
					mrs = append(mrs, register.PCR{Index: pcr, Digest: value, DigestAlg: alg.CryptoHash()})
				}
				if _, err := theirs.Verify(mrs); err != nil {
					t.Errorf("bank %s: go-eventlog does not come to our values: %v", bank, err)
				}
				for i := range mrs {
					p := mrs[i].(register.PCR)
					if !slices.ContainsFunc(ours.Events, func(e LoggedEvent) bool { return int(e.PCR) == p.Index && e.UntrustedType != EventNoAction }) {
						continue // of a PCR without events it takes any value
					}
					p.Digest = bytes.Clone(p.Digest)
					p.Digest[0] ^= 1
					if _, err := theirs.Verify([]register.MR{p}); err == nil {
						t.Errorf("bank %s: go-eventlog takes another value of PCR %d", bank, p.Index)
					}
				}
				if l, err := ParseEventLog(raw); err == nil {
					strict++
					for pcr, want := range values {
						if got, err := l.Replay(bank, pcr); err != nil || !bytes.Equal(got, want) {
							t.Errorf("bank %s, PCR %d: the strict reader gets %x, %v, want %x", bank, pcr, got, err, want)
						}
					}
				}
			}
		})
	}
	if strict == 0 {
		t.Error("the strict reader takes none of them")
	}
}

// compareEvents holds our events against those of go-eventlog, which leaves out
// the header of a crypto-agile log.
func compareEvents(t *testing.T, ours *UntrustedLog, bank string, theirs []tcg.Event) {
	t.Helper()
	events := ours.Events
	if ours.Format == FormatCryptoAgile {
		events = events[1:]
	}
	if len(events) != len(theirs) {
		t.Fatalf("bank %s: %d events, go-eventlog has %d", bank, len(events), len(theirs))
	}
	index := -1
	for i, b := range ours.Banks {
		if b.Name == bank {
			index = i
		}
	}
	for i, e := range events {
		w := theirs[i]
		if int(e.PCR) != w.Index || uint32(e.UntrustedType) != uint32(w.Type) || !bytes.Equal(e.UntrustedData, w.Data) || !bytes.Equal(e.Digests[index], w.Digest) {
			t.Errorf("bank %s: event %d is of PCR %d, type %s, digest %x, go-eventlog: PCR %d, type %s, digest %x", bank, e.Number, e.PCR, e.UntrustedType, e.Digests[index], w.Index, w.Type, w.Digest)
		}
	}
}

// What a TPM quoted beside the log.
func TestPublicLogsLeadToTheQuotedPCRs(t *testing.T) {
	out, err := exec.Command(tool(t, "go"), "list", "-m", "-f", "{{.Dir}}", "github.com/google/go-eventlog").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"windows_gcp_shielded_vm.json", "linux_tpm12.json"} {
		b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "testdata", "legacydata", name))
		if err != nil {
			t.Fatal(err)
		}
		var dump struct {
			Log struct {
				PCRs []struct {
					Index     int
					Digest    []byte
					DigestAlg crypto.Hash
				}
				Raw []byte
			}
		}
		if err := json.Unmarshal(b, &dump); err != nil {
			t.Fatal(err)
		}
		l := mustDecode(t, dump.Log.Raw)
		n := 0
		for _, p := range dump.Log.PCRs {
			bank := map[crypto.Hash]string{crypto.SHA1: "sha1", crypto.SHA256: "sha256"}[p.DigestAlg]
			got := l.PCRs(bank)[p.Index]
			if got == nil {
				continue // nothing of it is in the log
			}
			n++
			if !bytes.Equal(got, p.Digest) {
				t.Errorf("%s: PCR %d, bank %s: got %x, the TPM quoted %x", name, p.Index, bank, got, p.Digest)
			}
		}
		if n < 8 {
			t.Errorf("%s: only %d PCRs were compared", name, n)
		}
	}
}

// In logs of real firmware the banks agree: an event whose data is what was
// measured in one bank has it so in all. The rule that compares the banks
// refuses none of them.
func TestBanksOfRealLogsAgree(t *testing.T) {
	logs := publicLogs(t)
	for _, f := range allLogs(t) {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		logs[f] = b
	}
	compared := 0
	for name, raw := range logs {
		l, err := ParseEventLog(raw)
		if err != nil || len(l.Banks) < 2 {
			continue
		}
		for _, f := range Disagreements(l) {
			t.Errorf("%s: %s", name, f.Message)
		}
		compared++
	}
	if compared < 3 {
		t.Errorf("only %d logs have more than one bank", compared)
	}
}
