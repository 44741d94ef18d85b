package unlock

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/client"
)

// The vector was made with Python's hmac module after RFC 5869.
func TestDiskKeyVector(t *testing.T) {
	device, service := make(attest.Secret, 32), make(attest.Secret, 32)
	for i := range 32 {
		device[i], service[i] = byte(i), byte(0x80+i)
	}
	const guid = "00112233-4455-6677-8899-aabbccddeeff"
	key, err := DiskKey(device, service, guid)
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(key); got != diskKeyVector {
		t.Errorf("got %s, want %s", got, diskKeyVector)
	}
	other, err := DiskKey(service, device, guid)
	if err != nil || slices.Equal(other, key) {
		t.Errorf("the halves can be swapped: %v", err)
	}
}

const diskKeyVector = "b442e188dff5b8896be1222e0597a79caae4e79d3bad1a17034740d4cd033062"

func TestDiskKeyRefusesShortInput(t *testing.T) {
	full := make(attest.Secret, 32)
	guid := strings.Repeat("0", 36)
	for name, f := range map[string]func() (attest.Secret, error){
		"an empty service half":  func() (attest.Secret, error) { return DiskKey(full, nil, guid) },
		"a short device half":    func() (attest.Secret, error) { return DiskKey(full[:31], full, guid) },
		"a missing disk GUID":    func() (attest.Secret, error) { return DiskKey(full, full, "") },
		"a truncated disk GUID":  func() (attest.Secret, error) { return DiskKey(full, full, guid[1:]) },
		"a service half too big": func() (attest.Secret, error) { return DiskKey(full, make(attest.Secret, 64), guid) },
	} {
		t.Run(name, func(t *testing.T) {
			if key, err := f(); err == nil {
				t.Errorf("got a key of %d bytes", len(key))
			}
		})
	}
}

type screen struct{ lines []string }

func (s *screen) Step(format string, args ...any) {
	s.lines = append(s.lines, fmt.Sprintf(format, args...))
}

func (s *screen) Refused(code, message string) {
	s.lines = append(s.lines, "refused: "+code+": "+message)
}

func refusal(findings ...attest.Finding) error {
	return fmt.Errorf("evidence: %w", &client.RefusedError{Result: &attest.Result{Findings: findings}})
}

func TestLoop(t *testing.T) {
	cmdline := attest.Finding{Code: attest.CodeCmdline, Message: "differs", Hint: "reinstall"}
	revoked := attest.Finding{Code: attest.CodeMachineRevoked, Message: "stolen"}
	repeated := attest.Finding{Code: attest.CodeReleaseRepeated, Message: "again"}
	network := errors.New("connection refused")
	tests := map[string]struct {
		answers []error // the last one is nil where the loop is to succeed
		err     error
		lines   []string   // each must be printed
		pauses  [][2]int64 // bounds in seconds of the pauses in order
	}{
		"success needs no pause": {
			answers: []error{nil},
		},
		"each finding is printed with its hint": {
			answers: []error{refusal(cmdline, revoked), nil},
			lines:   []string{"refused: uki.cmdline: differs", "hint: reinstall", "refused: machine.revoked: stolen"},
			pauses:  [][2]int64{{3, 7}},
		},
		"refusals are asked about less and less often": {
			answers: []error{refusal(revoked), refusal(revoked), refusal(revoked), refusal(revoked), refusal(revoked), refusal(revoked), refusal(revoked), refusal(revoked), nil},
			pauses:  [][2]int64{{3, 7}, {7, 13}, {15, 25}, {30, 50}, {60, 100}, {120, 200}, {225, 375}, {225, 375}},
		},
		"a network that is away is tried again soon": {
			answers: []error{network, network, nil},
			lines:   []string{"attestation failed: connection refused"},
			pauses:  [][2]int64{{0, 2}, {1, 3}},
		},
		"a busy service is left alone for as long as it asks": {
			answers: []error{fmt.Errorf("ask: %w", &client.ServiceError{Status: 429, RetryAfter: 40 * time.Second}), nil},
			pauses:  [][2]int64{{40, 40}},
		},
		"a refusal without findings is a refusal": {
			answers: []error{refusal(), nil},
			lines:   []string{"refused: unknown: the attestation service gave no reason"},
			pauses:  [][2]int64{{3, 7}},
		},
		"a release whose answer was lost needs a new boot": {
			answers: []error{refusal(repeated)},
			err:     ErrBootSpent,
			lines:   []string{"refused: release.repeated: again"},
		},
		"a repeated release of a revoked machine is a refusal like others": {
			answers: []error{refusal(repeated, revoked), nil},
			pauses:  [][2]int64{{3, 7}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var pauses []time.Duration
			s := &screen{}
			n := 0
			l := Loop{
				Screen:  s,
				Attempt: func(context.Context) error { n++; return tt.answers[n-1] },
				Sleep:   func(_ context.Context, d time.Duration) error { pauses = append(pauses, d); return nil },
			}
			if err := l.Run(t.Context()); !errors.Is(err, tt.err) {
				t.Fatalf("got %v, want %v", err, tt.err)
			}
			if n != len(tt.answers) {
				t.Errorf("got %d attempts, want %d", n, len(tt.answers))
			}
			for _, want := range tt.lines {
				if !slices.Contains(s.lines, want) {
					t.Errorf("%q was not printed, only %q", want, s.lines)
				}
			}
			if len(pauses) != len(tt.pauses) {
				t.Fatalf("got pauses %v, want %d", pauses, len(tt.pauses))
			}
			for i, p := range pauses {
				if lo, hi := time.Duration(tt.pauses[i][0])*time.Second, time.Duration(tt.pauses[i][1])*time.Second; p < lo || p > hi {
					t.Errorf("pause %d is %s, want %s to %s", i, p, lo, hi)
				}
			}
		})
	}
}

func TestLoopEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	l := Loop{
		Screen:  &screen{},
		Attempt: func(context.Context) error { cancel(); return errors.New("down") },
		Sleep:   Sleep,
	}
	if err := l.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
