// Package vm runs boxes for demos and tests: QEMU with real UEFI firmware
// (OVMF, or AAVMF on arm64, with Secure Boot) and a TPM 2.0 (swtpm). A Box is
// the hardware: disk, NVRAM and TPM outlive its power cycles, each of which is
// a Run.
package vm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Box is one machine that keeps its state in a directory.
type Box struct {
	Name   string
	Dir    string // absolute; holds vars.fd, disk.raw, tpm/ and the serial logs
	Arch   string // amd64, arm64. Optional; amd64.
	Code   string // firmware image
	Memory int    // MiB
	CPUs   int
	MAC    string
	UUID   string
	Serial string
	// Banks are the PCR banks that the TPM is made with. Optional; sha256.
	Banks []string
}

// TPMCA is the authority that signs the endorsement certificates of the boxes'
// software TPMs, as swtpm_localca keeps it.
type TPMCA struct {
	Dir string // absolute
}

// RootFile is the CA's root certificate; it exists after the first box was made.
func (c TPMCA) RootFile() string { return filepath.Join(c.Dir, "swtpm-localca-rootca-cert.pem") }

// IssuerFile is the CA's issuing certificate.
func (c TPMCA) IssuerFile() string { return filepath.Join(c.Dir, "issuercert.pem") }

// Create makes a new box: blank disk of diskSize bytes, NVRAM copied from
// vars, and a TPM with endorsement certificates from ca.
func Create(ctx context.Context, b *Box, vars string, diskSize int64, ca TPMCA) error {
	if err := os.MkdirAll(filepath.Join(b.Dir, "tpm"), 0o700); err != nil {
		return fmt.Errorf("make box %s: %w", b.Name, err)
	}
	v, err := os.ReadFile(vars)
	if err != nil {
		return fmt.Errorf("make box %s: %w", b.Name, err)
	}
	if err := os.WriteFile(b.VarsFile(), v, 0o600); err != nil {
		return fmt.Errorf("make box %s: %w", b.Name, err)
	}
	disk, err := os.OpenFile(b.DiskFile(), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("make box %s: %w", b.Name, err)
	}
	if err := errors.Join(disk.Truncate(diskSize), disk.Close()); err != nil {
		return fmt.Errorf("make box %s: %w", b.Name, err)
	}
	if err := manufacture(ctx, b, ca); err != nil {
		return fmt.Errorf("make box %s: %w", b.Name, err)
	}
	return nil
}

// manufacture gives the TPM its endorsement keys and certificates.
func manufacture(ctx context.Context, b *Box, ca TPMCA) error {
	if err := os.MkdirAll(ca.Dir, 0o700); err != nil {
		return err
	}
	files := map[string]string{
		"swtpm-localca.conf":    fmt.Sprintf("statedir = %s\nsigningkey = %s/signkey.pem\nissuercert = %s\ncertserial = %s/certserial\n", ca.Dir, ca.Dir, ca.IssuerFile(), ca.Dir),
		"swtpm-localca.options": "--platform-manufacturer Sealift\n--platform-version 1\n--platform-model demo\n",
		"swtpm_setup.conf": fmt.Sprintf("create_certs_tool = %s\ncreate_certs_tool_config = %s/swtpm-localca.conf\ncreate_certs_tool_options = %s/swtpm-localca.options\nactive_pcr_banks = sha256\n",
			localCA(), ca.Dir, ca.Dir),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(ca.Dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	banks := "sha256"
	if len(b.Banks) > 0 {
		banks = strings.Join(b.Banks, ",")
	}
	cmd := exec.CommandContext(ctx, "swtpm_setup", "--tpm2", "--tpm-state", filepath.Join(b.Dir, "tpm"),
		"--create-ek-cert", "--create-platform-cert", "--lock-nvram", "--overwrite", "--pcr-banks", banks,
		"--vmid", b.Name, "--config", filepath.Join(ca.Dir, "swtpm_setup.conf"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("swtpm_setup: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// ActivateBanks makes the PCR banks of a box that is off those of b.Banks, as its
// firmware's setup would.
func ActivateBanks(ctx context.Context, b *Box) error {
	cmd := exec.CommandContext(ctx, "swtpm_setup", "--tpm2", "--tpm-state", filepath.Join(b.Dir, "tpm"),
		"--reconfigure", "--pcr-banks", strings.Join(b.Banks, ","))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("activate the PCR banks %s of box %s: swtpm_setup: %w: %s", b.Banks, b.Name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// localCA returns the path of swtpm_localca, which swtpm_setup wants absolute.
func localCA() string {
	if p, err := exec.LookPath("swtpm_localca"); err == nil {
		return p
	}
	return "/usr/bin/swtpm_localca"
}

// VarsFile is the firmware's NVRAM.
func (b *Box) VarsFile() string { return filepath.Join(b.Dir, "vars.fd") }

// DiskFile is the raw disk.
func (b *Box) DiskFile() string { return filepath.Join(b.Dir, "disk.raw") }

// Power says how a box is switched on this time. The zero value changes nothing.
type Power struct {
	Label  string   // names the serial log
	Code   string   // other firmware than the box's own
	Vars   string   // other NVRAM than the box's own
	Disk   string   // other disk than the box's own
	SMBIOS []string // further -smbios arguments
	// WriteLog is a file for what is written to the disk, and where it is flushed,
	// in the form of the kernel's dm-log-writes. Optional.
	WriteLog string
	Tap      string   // tap device in the namespace that Command runs in
	Extra    []string // further QEMU arguments
	// Command runs QEMU, for example inside a network namespace. Optional:
	// exec.CommandContext if nil.
	Command func(ctx context.Context, name string, args ...string) *exec.Cmd
}

// Run is one power cycle of a box.
type Run struct {
	Started time.Time
	LogFile string // serial console

	qemu    *exec.Cmd
	keys    io.Writer // what is typed at the serial console
	stderr  *bytes.Buffer
	cleanup func()
	done    chan struct{}
	err     error // set before done is closed

	mu    sync.Mutex
	lines []line        // guarded by mu
	grown chan struct{} // guarded by mu; closed when lines grows, then replaced
}

type line struct {
	at   time.Duration
	text string
}

// Accelerator returns kvm where a virtual machine really runs with it, else
// tcg. A device that can be opened proves little inside another virtual
// machine, and Secure Boot needs System Management Mode, which not every KVM
// has: so a machine with all that runs, and does nothing but switch itself off.
func Accelerator(ctx context.Context) string {
	dir, err := os.MkdirTemp("", "kvm")
	if err != nil {
		return "tcg"
	}
	defer os.RemoveAll(dir)
	// At the reset vector: mov dx, 0xf4; mov al, 0x10; out dx, al; hlt.
	rom := make([]byte, 64<<10)
	copy(rom[len(rom)-16:], []byte{0xba, 0xf4, 0x00, 0xb0, 0x10, 0xee, 0xf4})
	bios := filepath.Join(dir, "bios")
	if err := os.WriteFile(bios, rom, 0o600); err != nil {
		return "tcg"
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err = exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", "q35,smm=on,accel=kvm", "-cpu", "host", "-nodefaults", "-display", "none",
		"-bios", bios, "-device", "isa-debug-exit,iobase=0xf4,iosize=0x01").Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 0x10<<1|1 { // what isa-debug-exit makes of 0x10
		return "kvm"
	}
	return "tcg"
}

// emulatedCPU is everything that TCG can emulate, but for what makes guests
// slower in it than they are without: copies by "rep movsb" (ERMS, FSRM), which
// it does byte by byte, and five-level page tables (LA57), which it walks at
// each TLB miss.
const emulatedCPU = "max,-erms,-fsrm,-la57"

// Start switches the box on. The run ends when the box powers off or resets,
// when ctx ends, or by Kill.
func (b *Box) Start(ctx context.Context, accel string, p Power) (*Run, error) {
	run, err := b.start(ctx, accel, p)
	if err != nil {
		return nil, fmt.Errorf("switch on box %s (%s): %w", b.Name, p.Label, err)
	}
	return run, nil
}

func (b *Box) start(ctx context.Context, accel string, p Power) (*Run, error) {
	// Unix socket paths are short (108 bytes), so they stay out of b.Dir.
	sockets, err := os.MkdirTemp("", "box")
	if err != nil {
		return nil, err
	}
	tpm := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+filepath.Join(b.Dir, "tpm"),
		"--ctrl", "type=unixio,path="+filepath.Join(sockets, "tpm"), "--flags", "startup-clear")
	tpm.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var tpmErr bytes.Buffer
	tpm.Stderr = &tpmErr
	if err := tpm.Start(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(sockets))
	}
	cleanup := func() {
		tpm.Process.Kill()
		tpm.Wait()
		os.RemoveAll(sockets)
	}
	if err := waitForFile(ctx, filepath.Join(sockets, "tpm")); err != nil {
		cleanup()
		return nil, fmt.Errorf("swtpm: %w: %s", err, strings.TrimSpace(tpmErr.String()))
	}
	or := func(a, b string) string {
		if a != "" {
			return a
		}
		return b
	}
	hw := b.hardware(accel)
	args := append(hw.machine, "-name", b.Name,
		"-m", fmt.Sprint(b.Memory), "-smp", fmt.Sprint(b.CPUs), "-nodefaults", "-display", "none", "-no-reboot",
		"-serial", "stdio", "-uuid", b.UUID,
		"-smbios", "type=1,manufacturer=Sealift,product=demo-box,serial="+b.Serial+",uuid="+b.UUID,
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file="+or(p.Code, b.Code),
		"-drive", "if=pflash,format=raw,unit=1,file="+or(p.Vars, b.VarsFile()),
		"-device", "virtio-blk-pci,drive=disk",
		"-chardev", "socket,id=tpm,path="+filepath.Join(sockets, "tpm"),
		"-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", hw.tpm+",tpmdev=tpm0",
		"-device", "virtio-rng-pci",
	)
	disk := or(p.Disk, b.DiskFile())
	if p.WriteLog == "" {
		args = append(args, "-drive", "if=none,id=disk,format=raw,discard=unmap,cache=unsafe,file="+disk)
	} else {
		if err := os.WriteFile(p.WriteLog, nil, 0o600); err != nil {
			cleanup()
			return nil, err
		}
		// Flushes come as far as the log, and not to the files.
		for _, f := range [][2]string{{"disk-file", disk}, {"disk-log", p.WriteLog}} {
			args = append(args, "-blockdev", "driver=file,cache.no-flush=on,discard=unmap,node-name="+f[0]+",filename="+f[1])
		}
		args = append(args, "-blockdev", "driver=blklogwrites,node-name=disk,discard=unmap,file=disk-file,log=disk-log")
	}
	for _, s := range p.SMBIOS {
		args = append(args, "-smbios", s)
	}
	if p.Tap != "" {
		// An empty romfile leaves network boot to the firmware's own stack.
		args = append(args, "-netdev", "tap,id=net,ifname="+p.Tap+",script=no,downscript=no",
			"-device", "virtio-net-pci,netdev=net,romfile=,mac="+b.MAC)
	}
	args = append(args, p.Extra...)

	command := p.Command
	if command == nil {
		command = exec.CommandContext
	}
	logFile := filepath.Join(b.Dir, "serial-"+or(p.Label, "boot")+".log")
	log, err := os.Create(logFile)
	if err != nil {
		cleanup()
		return nil, err
	}
	qemu := command(ctx, hw.qemu, args...)
	qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stderr bytes.Buffer
	qemu.Stderr = &stderr
	out, err := qemu.StdoutPipe()
	if err != nil {
		cleanup()
		return nil, errors.Join(err, log.Close())
	}
	keys, err := qemu.StdinPipe()
	if err != nil {
		cleanup()
		return nil, errors.Join(err, log.Close())
	}
	r := &Run{Started: time.Now(), LogFile: logFile, qemu: qemu, keys: keys, stderr: &stderr, cleanup: cleanup,
		done: make(chan struct{}), grown: make(chan struct{})}
	if err := qemu.Start(); err != nil {
		cleanup()
		return nil, errors.Join(err, log.Close())
	}
	go r.follow(out, log)
	return r, nil
}

// follow copies the console to the log and to lines until QEMU ends.
func (r *Run) follow(out io.Reader, log *os.File) {
	s := bufio.NewReaderSize(io.TeeReader(out, log), 64<<10)
	for {
		// A line longer than the buffer is taken in pieces.
		text, err := s.ReadSlice('\n')
		if len(text) > 0 {
			r.mu.Lock()
			r.lines = append(r.lines, line{time.Since(r.Started), clean(text)})
			close(r.grown)
			r.grown = make(chan struct{})
			r.mu.Unlock()
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			break
		}
	}
	err := r.qemu.Wait()
	if msg := strings.TrimSpace(r.stderr.String()); err != nil && msg != "" {
		err = fmt.Errorf("%w: %s", err, msg)
	}
	r.err = errors.Join(err, log.Close())
	r.cleanup()
	close(r.done)
}

var escape = regexp.MustCompile(`\x1b\[[0-9;?=]*[A-Za-z]|\x1b[=>c]|[\x00-\x08\x0b-\x1f]`)

// clean takes terminal control out of a console line.
func clean(b []byte) string { return strings.TrimSpace(escape.ReplaceAllString(string(b), "")) }

// ErrEnded says that the box went off before what was waited for appeared.
var ErrEnded = errors.New("the box went off first")

// WaitFor returns when a console line matches, with the line and the time
// since power-on. Lines that came before the call count.
func (r *Run) WaitFor(ctx context.Context, re *regexp.Regexp) (string, time.Duration, error) {
	next := 0
	for {
		r.mu.Lock()
		fresh, grown := r.lines[next:], r.grown
		next = len(r.lines)
		r.mu.Unlock()
		for _, l := range fresh {
			if re.MatchString(l.text) {
				return l.text, l.at, nil
			}
		}
		select {
		case <-grown:
		case <-r.done:
			r.mu.Lock()
			rest := len(r.lines) > next
			r.mu.Unlock()
			if !rest {
				return "", 0, fmt.Errorf("wait for console line %q: %w\n%s", re, ErrEnded, r.Tail(30))
			}
		case <-ctx.Done():
			return "", 0, fmt.Errorf("wait for console line %q: %w\n%s", re, context.Cause(ctx), r.Tail(30))
		}
	}
}

// Type types text at the serial console. Whoever reads it there is for the
// caller to wait for; what nobody reads is lost.
func (r *Run) Type(text string) error {
	if _, err := io.WriteString(r.keys, text); err != nil {
		return fmt.Errorf("type at the console: %w", err)
	}
	return nil
}

// Lines returns the console lines that match, so far.
func (r *Run) Lines(re *regexp.Regexp) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, l := range r.lines {
		if re.MatchString(l.text) {
			out = append(out, l.text)
		}
	}
	return out
}

// Tail returns the last n non-empty console lines, each with its time.
func (r *Run) Tail(n int) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for i := len(r.lines) - 1; i >= 0 && len(out) < n; i-- {
		if l := r.lines[i]; l.text != "" {
			out = append(out, fmt.Sprintf("    %6.2f %s", l.at.Seconds(), l.text))
		}
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return strings.Join(out, "\n")
}

// Wait returns when the box is off.
func (r *Run) Wait(ctx context.Context) error {
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return fmt.Errorf("wait for power-off: %w\n%s", context.Cause(ctx), r.Tail(30))
	}
}

// Off reports whether the box is off.
func (r *Run) Off() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// Kill pulls the plug and waits until the box is off.
func (r *Run) Kill() {
	r.qemu.Process.Kill()
	<-r.done
}

func waitForFile(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", filepath.Base(path), ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}
