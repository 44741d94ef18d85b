package report

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/client"
)

// play runs a loop over answers and returns the pauses and the log.
func play(t *testing.T, every time.Duration, answers ...any) ([]time.Duration, string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var pauses []time.Duration
	var log bytes.Buffer
	l := Loop{
		Every: every, Log: slog.New(slog.NewTextHandler(&log, nil)),
		Sleep: func(ctx context.Context, d time.Duration) error {
			pauses = append(pauses, d)
			if len(pauses) > len(answers) {
				cancel()
			}
			return ctx.Err()
		},
		Attempt: func(ctx context.Context) (time.Duration, error) {
			if _, ok := ctx.Deadline(); !ok {
				t.Error("an attempt has no limit")
			}
			switch a := answers[len(pauses)-1].(type) {
			case error:
				return 0, a
			case time.Duration:
				return a, nil
			default:
				panic(a)
			}
		},
	}
	l.Run(ctx)
	return pauses, log.String()
}

func TestReportsKeepTheServicesPace(t *testing.T) {
	refused := &client.RefusedError{Result: &attest.Result{Findings: []attest.Finding{{Code: attest.CodePCRChanged, Message: "PCR 9"}}}}
	broken := errors.New("connection refused")
	for name, c := range map[string]struct {
		every   time.Duration
		answers []any
		want    []time.Duration // without the spread
		says    string
	}{
		"the first report comes early":       {10 * time.Minute, []any{time.Duration(0)}, []time.Duration{time.Minute, 10 * time.Minute}, ""},
		"unless reports come more often":     {20 * time.Second, []any{time.Duration(0)}, []time.Duration{20 * time.Second, 20 * time.Second}, ""},
		"the service changes the pace":       {10 * time.Minute, []any{time.Hour, time.Duration(0)}, []time.Duration{time.Minute, time.Hour, time.Hour}, ""},
		"within bounds":                      {time.Nanosecond, []any{1000 * time.Hour, time.Millisecond}, []time.Duration{10 * time.Second, 24 * time.Hour, 10 * time.Second}, ""},
		"a refusal changes nothing":          {10 * time.Minute, []any{refused, refused}, []time.Duration{time.Minute, 10 * time.Minute, 10 * time.Minute}, "report.pcr-changed"},
		"a service that is away is retried":  {10 * time.Minute, []any{broken, broken, broken, time.Duration(0)}, []time.Duration{time.Minute, 5 * time.Second, 10 * time.Second, 20 * time.Second, 10 * time.Minute}, "accepted again"},
		"less and less often":                {20 * time.Second, []any{broken, broken, broken, broken}, []time.Duration{20 * time.Second, 5 * time.Second, 10 * time.Second, 20 * time.Second, 20 * time.Second}, "connection refused"},
		"a busy service says when":           {10 * time.Minute, []any{&client.ServiceError{Status: 429, RetryAfter: 3 * time.Minute}}, []time.Duration{time.Minute, 144 * time.Second}, ""},
		"a panic is an error like any other": {10 * time.Minute, []any{"bug", time.Duration(0)}, []time.Duration{time.Minute, 5 * time.Second, 10 * time.Minute}, "bug"},
	} {
		t.Run(name, func(t *testing.T) {
			got, log := play(t, c.every, c.answers...)
			if len(got) != len(c.want) {
				t.Fatalf("pauses are %v, want about %v", got, c.want)
			}
			for i, want := range c.want {
				if got[i] < want*3/4 || got[i] > want*5/4 {
					t.Errorf("pause %d is %v, want about %v", i, got[i], want)
				}
			}
			if !strings.Contains(log, c.says) {
				t.Errorf("the log does not say %q: %s", c.says, log)
			}
		})
	}
	if _, log := play(t, time.Minute, broken, broken, broken, broken); strings.Count(log, "\n") != 1 {
		t.Errorf("each of the attempts is logged:\n%s", log)
	}
}
