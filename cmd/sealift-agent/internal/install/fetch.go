package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/sealift/sealift/provisioner/api"
)

// Times of the fetches.
const (
	dialTimeout   = 10 * time.Second
	answerTimeout = 30 * time.Second // for a small request, and for a header
	stallTimeout  = 30 * time.Second // without a byte of a download
	giveUpAfter   = 15 * time.Minute // without a byte of a download, over all attempts
	retryFirst    = time.Second
	retryMax      = 30 * time.Second
)

// Server is the provisioner.
type Server struct {
	base   *url.URL
	client *http.Client
	log    *slog.Logger
}

// NewServer returns a client for the provisioner at base, the boot file name
// of the DHCP answer.
func NewServer(base string, log *slog.Logger) (*Server, error) {
	if base == "" {
		return nil, errors.New("the DHCP answer has no boot file name (option 67), want the provisioner's base URL")
	}
	u, err := url.Parse(base)
	if err != nil {
		return nil, fmt.Errorf("the provisioner's base URL: %w", err)
	}
	if u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("the provisioner's base URL is %q, want http://host[:port]/[path/]", base)
	}
	return &Server{
		base: u,
		log:  log,
		client: &http.Client{
			Transport: &http.Transport{
				DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
				ResponseHeaderTimeout: answerTimeout,
				DisableCompression:    true, // ranges are of the file's own bytes
				MaxIdleConnsPerHost:   2,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error {
				return errors.New("redirects are not followed")
			},
		},
	}, nil
}

// resolve joins a relative path of a plan to the base. A path that leads
// elsewhere is an error.
func (s *Server) resolve(rel string) (*url.URL, error) {
	u, err := url.Parse(rel)
	if err != nil {
		return nil, fmt.Errorf("path %q: %w", rel, err)
	}
	if rel == "" || u.IsAbs() || u.Host != "" || u.Fragment != "" || strings.HasPrefix(u.Path, "/") || path.Clean(u.Path) != u.Path || strings.HasPrefix(u.Path, "..") {
		return nil, fmt.Errorf("path %q: want one below the base URL", rel)
	}
	j := s.base.JoinPath(u.Path)
	j.RawQuery = u.RawQuery
	return j, nil
}

// statusError is an answer that is not a success.
type statusError struct {
	status string
	code   int
	text   string // start of the body
}

func (e *statusError) Error() string {
	if e.text == "" {
		return "got " + e.status
	}
	return "got " + e.status + ": " + e.text
}

// do sends a request and returns its body, of at most limit bytes.
func (s *Server) do(ctx context.Context, method, rel string, body []byte, limit int64) ([]byte, error) {
	u, err := s.resolve(rel)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s %s: %w", method, u, failed(res))
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, u, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s %s: more than %d bytes", method, u, limit)
	}
	return b, nil
}

func failed(res *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(res.Body, 300)) //nolint:errcheck // only to explain
	return &statusError{status: res.Status, code: res.StatusCode, text: strings.TrimSpace(string(b))}
}

// Plan asks what to install.
func (s *Server) Plan(ctx context.Context, host api.HostKey) (*api.Plan, error) {
	q := url.Values{"mac": {host.MAC}, "uuid": {host.UUID}}
	b, err := s.do(ctx, http.MethodGet, api.PathPlan+"?"+q.Encode(), nil, api.MaxBody)
	if err != nil {
		return nil, fmt.Errorf("fetch the plan: %w", err)
	}
	var p api.Plan
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("fetch the plan: %w", err)
	}
	for _, rel := range []string{p.Manifest, p.Bundle, p.Disk} {
		if _, err := s.resolve(rel); err != nil {
			return nil, fmt.Errorf("fetch the plan: %w", err)
		}
	}
	return &p, nil
}

// Get fetches a small file whole.
func (s *Server) Get(ctx context.Context, rel string, limit int64) ([]byte, error) {
	return s.do(ctx, http.MethodGet, rel, nil, limit)
}

// Post sends v as JSON.
func (s *Server) Post(ctx context.Context, rel string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the body for %s: %w", rel, err)
	}
	_, err = s.do(ctx, http.MethodPost, rel, b, api.MaxBody)
	return err
}

// Download returns a reader of a file of exactly size bytes. When the
// connection breaks it goes on where it was, with a range request, so a reader
// sees an error only when nothing came for giveUpAfter, or when the file is
// another one than before.
func (s *Server) Download(ctx context.Context, rel string, size int64) (io.ReadCloser, error) {
	u, err := s.resolve(rel)
	if err != nil {
		return nil, fmt.Errorf("download: %w", err)
	}
	return &download{ctx: ctx, server: s, url: u.String(), size: size, last: time.Now()}, nil
}

// download is owned by the goroutine that reads it.
type download struct {
	ctx    context.Context // of the one transfer that the value stands for
	server *Server
	url    string
	size   int64

	off    int64
	etag   string
	last   time.Time // of the last byte
	pause  time.Duration
	body   io.ReadCloser
	cancel context.CancelFunc
	stall  *time.Timer
}

func (d *download) Read(p []byte) (int, error) {
	for {
		if d.off == d.size {
			return 0, io.EOF
		}
		err := d.open()
		if err == nil {
			d.stall.Reset(stallTimeout)
			var n int
			n, err = d.body.Read(p[:min(int64(len(p)), d.size-d.off)])
			d.stall.Stop()
			if n > 0 {
				d.off += int64(n)
				d.last = time.Now()
				d.pause = 0
				return n, nil
			}
			if err == nil {
				continue
			}
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
		}
		d.Close() //nolint:errcheck // the connection is broken
		var changed *changedError
		if d.ctx.Err() != nil || errors.As(err, &changed) || time.Since(d.last) > giveUpAfter {
			return 0, fmt.Errorf("download %s: at byte %d of %d: %w", d.url, d.off, d.size, err)
		}
		d.pause = min(max(2*d.pause, retryFirst), retryMax)
		d.server.log.Warn("download interrupted, going on soon", "at", d.off, "of", d.size, "in", d.pause, "err", err)
		if err := sleep(d.ctx, d.pause); err != nil {
			return 0, err
		}
	}
}

// changedError means that going on makes no sense.
type changedError struct{ text string }

func (e *changedError) Error() string { return e.text }

// open makes sure that there is a body that continues at d.off.
func (d *download) open() error {
	if d.body != nil {
		return nil
	}
	ctx, cancel := context.WithCancel(d.ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url, nil)
	if err != nil {
		cancel()
		return err
	}
	if d.off > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(d.off, 10)+"-")
	}
	res, err := d.server.client.Do(req)
	if err != nil {
		cancel()
		return err
	}
	if err := d.accept(res); err != nil {
		cancel()
		return errors.Join(err, res.Body.Close())
	}
	d.body, d.cancel = res.Body, cancel
	d.stall = time.AfterFunc(stallTimeout, cancel)
	return nil
}

// accept checks that an answer continues the file, and skips what came before
// if the server sends the file from its start again.
func (d *download) accept(res *http.Response) error {
	tag := res.Header.Get("ETag")
	total := int64(-1)
	switch {
	case res.StatusCode == http.StatusPartialContent && d.off > 0:
		r := res.Header.Get("Content-Range")
		want := fmt.Sprintf("bytes %d-%d/%d", d.off, d.size-1, d.size)
		if r != want {
			return &changedError{fmt.Sprintf("the range answered is %q, want %q", r, want)}
		}
		total = d.size
	case res.StatusCode == http.StatusOK:
		total = res.ContentLength
	default:
		return failed(res)
	}
	if total >= 0 && total != d.size {
		return &changedError{fmt.Sprintf("the file has %d bytes, the signed manifest says %d", total, d.size)}
	}
	if d.etag != "" && tag != d.etag {
		return &changedError{fmt.Sprintf("the file changed during the download: ETag %s, was %s", tag, d.etag)}
	}
	d.etag = tag
	if res.StatusCode == http.StatusOK && d.off > 0 {
		if _, err := io.CopyN(io.Discard, res.Body, d.off); err != nil {
			return fmt.Errorf("skip the first %d bytes: %w", d.off, err)
		}
	}
	return nil
}

// Close ends the transfer. It may be called more than once.
func (d *download) Close() error {
	if d.body == nil {
		return nil
	}
	d.stall.Stop()
	d.cancel()
	err := d.body.Close()
	d.body = nil
	return err
}

// sleep waits, or returns why it could not.
func sleep(ctx context.Context, t time.Duration) error {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// retry calls f until it succeeds or ctx ends, and tells what went wrong.
func retry(ctx context.Context, log *slog.Logger, what string, f func() error) error {
	pause := retryFirst
	for {
		err := f()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		log.Warn(what+" failed, trying again", "in", pause, "err", err)
		if err := sleep(ctx, pause); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		pause = min(2*pause, retryMax)
	}
}
