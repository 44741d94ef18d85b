package figures

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	_ "modernc.org/sqlite" // the driver, without the store around it

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/papertpm"
	"github.com/sealift/sealift/cmd/sealift/internal/fleet"
	"github.com/sealift/sealift/image/manifest"
)

// TestServiceFigures lets simulated fleets boot against the attestation
// service. It runs where SEALIFT_BENCH names the file of TestFigures, and writes
// figures-service.md beside it. The service and the fleet share the machine.
func TestServiceFigures(t *testing.T) {
	out := os.Getenv("SEALIFT_BENCH")
	if out == "" {
		t.Skip("figures: make bench")
	}
	b := &bench{T: t, dir: t.TempDir(), bin: os.Getenv("SEALIFT_BIN")}
	verify := b.verification()
	signatures := b.openssl()
	syncs := b.fsync()

	fast := b.fleet("--machines", "3000", "--addresses", "1000")
	b.goal("complete releases, as fast as they go", fmt.Sprintf("%.0f/s (load %.1f)", fast.Rate, fast.Load), "1000/s")
	b.rows = append(b.rows,
		fmt.Sprintf("| CPU of the service for one release | %.2f ms | one P-256 verification, openssl: %.3f ms | %.0f of them |", fast.Service.PerRelease, signatures.Seconds()*1e3, fast.Service.PerRelease/1e3/signatures.Seconds()),
		fmt.Sprintf("| CPU for the verification of one evidence | %.2f ms (goal 1 ms) | the same | %.0f of them |", verify.Seconds()*1e3, verify.Seconds()/signatures.Seconds()),
		fmt.Sprintf("| durable releases | %.0f/s, two commits each | SQLite alone, one row in each commit: %.0f/s | %.2f of them |", fast.Rate, syncs, 2*fast.Rate/syncs),
		fmt.Sprintf("| the database grows for one release | %.1f kB | | |", float64(fast.Service.PerBoot)/1e3))
	// At half of the goal, and at half of what this machine does.
	for _, rate := range []float64{500, fast.Rate / 2} {
		half := b.fleet("--machines", "5000", "--addresses", "1000", "--rate", fmt.Sprintf("%.0f", rate), "--duration", "20s")
		for _, l := range half.Latency {
			if l.Step == "whole" {
				b.goal(fmt.Sprintf("all steps of a release at %.0f/s, p50, p99, p99.9 (reached %.0f/s, load %.1f)", rate, half.Rate, half.Load), fmt.Sprintf("%.1f, %.1f, %.1f ms", l.P50, l.P99, l.P999), "p99 50 ms")
			}
		}
	}
	flight := b.fleet("--machines", "10000", "--addresses", "1000", "--storm", "--open", "9500", "--tpm-time", "40s", "--again", "0")
	b.atMost(fmt.Sprintf("memory with %d machines in flight", flight.Open), flight.Service.PeakRSS, 300e6, megabytes(flight.Service.PeakRSS), "300 MB")
	storm := b.fleet("--machines", "100000", "--addresses", "5000", "--storm", "--open", "4096")
	b.goal(fmt.Sprintf("storm of %d machines: drained in", storm.Machines), fmt.Sprintf("%.0f s, %d came again, %d refused wrongly, %d second releases (load %.1f)",
		storm.Seconds, storm.Retries, storm.WrongRefusals, storm.SecondReleases, storm.Load), "what the rate allows")

	b.rows = append(b.rows, "", "| event log | releases/s | CPU of the service for one | database for one |", "| --- | --- | --- | --- |")
	for _, size := range []int{8 << 10, 32 << 10, 128 << 10, 512 << 10} {
		r := b.fleet("--machines", "1000", "--addresses", "1000", "--log-size", strconv.Itoa(size))
		b.rows = append(b.rows, fmt.Sprintf("| %d KiB | %.0f | %.2f ms | %.1f kB |", size>>10, r.Rate, r.Service.PerRelease, float64(r.Service.PerBoot)/1e3))
	}
	b.rows = append(b.rows, "", "| fleet | releases/s | CPU of the service for one | memory at the most |", "| --- | --- | --- | --- |")
	for _, n := range []int{1000, 10_000, 50_000} {
		r := b.fleet("--machines", strconv.Itoa(n), "--addresses", "1000")
		b.rows = append(b.rows, fmt.Sprintf("| %d | %.0f | %.2f ms | %s |", n, r.Rate, r.Service.PerRelease, megabytes(r.Service.PeakRSS)))
	}
	table := fmt.Sprintf("| what (%d CPUs, %s, service and fleet on one machine) | Sealift | goal, or what else there is | ratio |\n| --- | --- | --- | --- |\n%s\n",
		runtime.NumCPU(), runtime.Version(), strings.Join(b.rows, "\n"))
	b.must(os.WriteFile(filepath.Join(filepath.Dir(out), "figures-service.md"), []byte(table), 0o644))
	t.Logf("\n%s", table)
}

// fleet runs a simulated fleet. A wrong refusal or a second release fails.
func (b *bench) fleet(args ...string) *fleet.Report {
	b.Helper()
	cmd := exec.Command(filepath.Join(b.bin, "sealift"), append([]string{"--json", "simulate", "fleet"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	got, err := cmd.Output()
	if err != nil {
		b.Fatalf("%v: %v\n%s%s", args, err, got, stderr.String()[max(0, stderr.Len()-2000):])
	}
	var r fleet.Report
	b.must(json.Unmarshal(got, &r))
	b.Logf("%v: %.0f releases/s, %.2f ms of CPU each, load %.1f", args, r.Rate, r.Service.PerRelease, r.Load)
	return &r
}

// verification is the time of one attest.Verify of evidence with a log of
// 32 KiB, on one core.
func (b *bench) verification() time.Duration {
	now := time.Now()
	ca, err := papertpm.NewCA(now.Add(-time.Hour), now.Add(time.Hour))
	b.must(err)
	d, err := papertpm.FromSeed([]byte("figures"))
	b.must(err)
	b.must(ca.Equip(d))
	boot := fleet.Boot(32 << 10)
	boot.Measure(d)
	ek, ak := tpm2.Marshal(d.EKPublic), tpm2.Marshal(d.AKPublic)
	ch := &attest.Challenge{ID: "c", Purpose: attest.PurposeUnlock, Nonce: make([]byte, 32), ActivationSecret: make([]byte, 32), AKPublic: ak, EKPublic: ek, Expires: now.Add(time.Hour)}
	ses := &attest.Session{Exporter: make([]byte, 32), Now: now, ActivationProof: attest.ActivationProof(ch.ActivationSecret, ch.ID, ch.Nonce, ak)}
	ev, err := d.Evidence(boot, ch.Purpose, ch.Nonce, ses.Exporter)
	b.must(err)
	known := &attest.Known{State: attest.StateEnrolled, DiskGUID: boot.Disk.GUID}
	policy := &attest.Policy{
		Images: []*manifest.Manifest{papertpm.GoodImage()}, Firmware: attest.FirmwarePolicy{References: []attest.FirmwareReference{papertpm.GoodFirmware()}},
		TPM: attest.TPMPolicy{Roots: []attest.TPMRoot{{Class: attest.TPMSoftware, Certificate: ca.Root}}, Allowed: []attest.TPMClass{attest.TPMSoftware}},
	}
	const n = 2000
	began := cpu(b)
	for range n {
		if r := attest.Verify(ev, ch, ses, known, policy); !r.Allowed {
			b.Fatalf("refused: %+v", r.Findings)
		}
	}
	return (cpu(b) - began) / n
}

// openssl is the CPU time of one P-256 verification.
func (b *bench) openssl() time.Duration {
	out, err := exec.Command("openssl", "speed", "-seconds", "3", "ecdsap256").CombinedOutput()
	if err != nil {
		b.Fatalf("openssl: %v\n%s", err, out)
	}
	// "Doing 256 bits verify ecdsa ops for 3s: 39843 256 bits ECDSA verify in 2.99s", of which the last is CPU time.
	m := regexp.MustCompile(`: (\d+) 256 bits ECDSA verify.* in ([0-9.]+)s`).FindSubmatch(out)
	if m == nil {
		b.Fatalf("openssl: %s", out)
	}
	n, err := strconv.ParseFloat(string(m[1]), 64)
	b.must(err)
	s, err := strconv.ParseFloat(string(m[2]), 64)
	b.must(err)
	return time.Duration(s / n * float64(time.Second))
}

// fsync is the number of durable commits of one row that SQLite makes in a
// second, one after another.
func (b *bench) fsync() float64 {
	db, err := sql.Open("sqlite", "file:"+filepath.Join(b.dir, "fsync.db")+"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)")
	b.must(err)
	defer db.Close()
	db.SetMaxOpenConns(1)
	_, err = db.Exec("CREATE TABLE t (n INTEGER)")
	b.must(err)
	insert, err := db.Prepare("INSERT INTO t VALUES (1)")
	b.must(err)
	n := 0
	began := time.Now()
	for ; time.Since(began) < 3*time.Second; n++ {
		_, err := insert.Exec()
		b.must(err)
	}
	return float64(n) / time.Since(began).Seconds()
}

// cpu is the time that this process has had a processor.
func cpu(b *bench) time.Duration {
	b.Helper()
	var u syscall.Rusage
	b.must(syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
