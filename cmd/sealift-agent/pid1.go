package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealift/sealift/cmd/sealift-agent/internal/boot"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/console"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/kmod"
	"github.com/sealift/sealift/profiles"
)

// fatalDelay is how long a fatal error stands on the screen before the
// machine goes on, which is also what keeps a broken box from rebooting too
// often.
const fatalDelay = 30 * time.Second

// panicDelay is what the kernel waits before it reboots when PID 1 crashed,
// in seconds (sysctl kernel.panic).
const panicDelay = "10"

// machine is what every mode starts from.
type machine struct {
	console *console.Printer
	log     *slog.Logger
	config  *profiles.AgentConfig // nil until it was read
	cmdline boot.Cmdline          // nil until it was read
}

// hinted is an error with advice for the person at the machine.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

// advise adds a hint to an error. A nil error stays nil.
func advise(err error, hint string) error {
	if err == nil {
		return nil
	}
	return &hinted{err, hint}
}

// pid1 runs a mode and ends the machine. It never returns: the kernel panics
// when PID 1 exits.
func pid1(mode string, f func(*machine) (boot.End, error)) {
	surviveSignals()
	m := &machine{console: console.New(discard{}, console.Uptime)}
	m.log = slog.New(m.console.Handler(slog.LevelInfo))
	end, err := guarded(m, f)
	if m.config != nil {
		mode = m.config.Mode
	}
	if err != nil {
		end = m.fatal(mode, err)
	}
	if err := end.Do(); err != nil {
		m.console.Fatal(err, "switch the machine off by hand")
	}
	for {
		time.Sleep(time.Hour)
	}
}

// surviveSignals keeps signals whose default in a Go program is to exit from
// ending PID 1. They are caught and not ignored, because what is ignored stays
// ignored in every program that is started. Whoever wants one of them asks for
// it beside this.
func surviveSignals() {
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGPIPE, unix.SIGTERM, unix.SIGQUIT)
}

// discard is where lines go before there is a console.
type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// guarded turns a panic of this goroutine into an error. One of another
// goroutine ends PID 1, and with it the kernel, which reboots.
func guarded(m *machine, f func(*machine) (boot.End, error)) (end boot.End, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("BUG: panic: %v: %s", r, debug.Stack())
		}
	}()
	return f(m)
}

// fatal says what went wrong, waits, and returns how the machine is to end: an
// installer powers off, because trying again is for the line to decide; a
// node reboots, because the cause may be gone.
func (m *machine) fatal(mode string, err error) boot.End {
	end := boot.EndReboot
	if mode == profiles.ModeInstall {
		end = boot.EndPowerOff
	}
	if m.config != nil && m.config.Debug {
		if v, ok, verr := m.cmdline.Value(profiles.ParamOnFatal); ok && verr == nil {
			if e, perr := boot.ParseEnd(v); perr == nil {
				end = e
			}
		}
	}
	hint := ""
	var h *hinted
	if errors.As(err, &h) {
		hint = h.hint
	}
	m.console.Fatal(err, hint)
	m.console.Step("%s in %s", end, fatalDelay)
	time.Sleep(fatalDelay)
	return end
}

// openConsole is the first thing to do once /dev is there.
func (m *machine) openConsole() {
	// Without a console device there is the kernel's log; see console.Open.
	_ = boot.UseConsole(console.Device)
	m.console = console.Open()
	m.setLog(false)
}

func (m *machine) setLog(verbose bool) {
	level := slog.LevelInfo
	if verbose {
		level = slog.LevelDebug
	}
	m.log = slog.New(m.console.Handler(level))
}

// initramfs prepares the early system and hands over to the configured mode.
func initramfs(m *machine) (boot.End, error) {
	if err := boot.MountAll(boot.APIMounts()); err != nil {
		return "", err
	}
	m.openConsole()
	if err := boot.WriteSysctl("kernel.panic", panicDelay); err != nil {
		return "", err
	}
	var err error
	if m.config, err = boot.ReadConfig(); err != nil {
		return "", advise(err, "the image is broken: build it again")
	}
	if m.cmdline, err = boot.ReadCmdline(); err != nil {
		return "", err
	}
	m.setLog(m.config.Debug)
	m.console.Step("agent started: image %s, mode %s", m.config.Image, m.config.Mode)
	earliest, err := boot.EarliestNow(profiles.AgentConfigPath, []byte(m.config.AttestCA))
	if err != nil {
		return "", advise(err, "the image is broken: build it again")
	}
	raised, err := boot.RaiseClock(earliest)
	if err != nil {
		return "", err
	}
	if raised {
		m.console.Step("the clock stood before the image's build and was set to it: check the battery of the mainboard")
	}
	if err := linkResolvConf(); err != nil {
		return "", err
	}
	ctx := context.Background()
	if m.config.Mode == profiles.ModeInstall {
		if err := m.loadModules(); err != nil {
			return "", err
		}
		return m.install(ctx)
	}
	return m.unlock(ctx)
}

func (m *machine) loadModules() error {
	return advise(kmod.Load(m.config.Modules), "the image's modules do not fit its kernel: build the image again")
}
