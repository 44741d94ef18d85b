package provisioner

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sealift/sealift/provisioner/api"
)

// Bounds of what an installer may say.
const (
	maxPhase = 64   // bytes
	maxText  = 1024 // bytes
)

// deliveryRetry is how often records are offered again to a RecordSink that
// could not take them.
const deliveryRetry = 15 * time.Second

// deliveryTimeout bounds one offer. An installer waits for the first one.
const deliveryTimeout = 20 * time.Second

// ErrRecordRefused is wrapped by a RecordSink that will never take a record.
var ErrRecordRefused = errors.New("install record refused")

// RecordSink takes install records: the attestation service enrols a machine
// by them. A record that was taken may come again, after a crash or a lost
// answer, and must then be taken again without effect. An error that wraps
// ErrRecordRefused is final and is shown to the installer; after any other
// error the record is kept and offered again. Record may be called
// concurrently for different hosts.
//
// ctx ends after 20 seconds at the latest.
type RecordSink interface {
	Record(ctx context.Context, r api.Record) error
}

// installer is the install workflow: plan, progress, record.
type installer struct {
	hosts   Store
	images  map[string]string
	image   string // the default
	leases  *leaseTable
	records RecordSink
	log     *slog.Logger
	now     func() time.Time

	mu   sync.Mutex
	busy map[string]bool // MACs whose record is being delivered
}

// requestError is an error that the client is told.
type requestError struct {
	status int
	text   string
}

func (e *requestError) Error() string { return e.text }

func refused(status int, format string, args ...any) error {
	return &requestError{status, fmt.Sprintf(format, args...)}
}

// writeAnswer sends an answer as JSON, or an error as text.
func writeAnswer(w http.ResponseWriter, log *slog.Logger, r *http.Request, answer any, err error) {
	var told *requestError
	switch {
	case errors.As(err, &told):
		log.Warn("install request refused", "client", r.RemoteAddr, "path", r.URL.Path, "status", told.status, "reason", told.text)
		http.Error(w, told.text, told.status)
	case err != nil:
		log.Error("install request failed", "client", r.RemoteAddr, "path", r.URL.Path, "error", err)
		w.Header().Set("Retry-After", "2")
		http.Error(w, "the request could not be stored", http.StatusServiceUnavailable)
	case answer == nil:
		w.WriteHeader(http.StatusNoContent)
	default:
		body, err := json.Marshal(answer)
		if err != nil {
			log.Error("encode an answer", "path", r.URL.Path, "error", err)
			http.Error(w, "the answer could not be encoded", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(append(body, '\n'))
	}
}

// authorise holds a host to speaking for itself: the address that the request
// comes from has to be the one that this server leased to the host's MAC. On a
// switched network that takes more than a forged body.
func (i *installer) authorise(key api.HostKey, from netip.Addr) error {
	if err := checkKey(key); err != nil {
		return refused(http.StatusBadRequest, "%v", err)
	}
	mac, ok := i.leases.holder(i.now(), from)
	if !ok {
		return refused(http.StatusForbidden, "%s has no lease from this server", from)
	}
	if mac.String() != key.MAC {
		return refused(http.StatusForbidden, "%s is leased to %s, not to %s", from, mac, key.MAC)
	}
	return nil
}

// plan tells an installer what to install, unless its host is installed.
func (i *installer) plan(r *http.Request, from netip.Addr) (any, error) {
	q := r.URL.Query()
	key := api.HostKey{MAC: q.Get("mac"), UUID: q.Get("uuid")}
	if err := i.authorise(key, from); err != nil {
		return nil, err
	}
	var image string
	host, err := i.hosts.Update(r.Context(), key, func(h *Host) error {
		if !h.Bootable() {
			return refused(http.StatusConflict, "host %s was installed at %s and no reinstall was asked for", key.MAC, h.Installed.Format(time.RFC3339))
		}
		if image = h.Image; image == "" {
			image = i.image
		}
		if _, ok := i.images[image]; !ok {
			return refused(http.StatusConflict, "host %s is to have image %q, which this server does not have", key.MAC, image)
		}
		note(h, key)
		h.State, h.Address, h.Progress, h.LastError = Installing, from, nil, ""
		return nil
	})
	if err != nil {
		return nil, err
	}
	i.log.Info("install plan given", "mac", key.MAC, "uuid", host.Key.UUID, "image", image)
	base := api.PathImages + image + "/"
	return api.Plan{Manifest: base + manifestFile, Bundle: base + bundleFile, Disk: base + diskFile}, nil
}

// note keeps the UUID that a host claims.
func note(h *Host, key api.HostKey) {
	if key.UUID != "" {
		h.Key.UUID = key.UUID
	}
}

// progress keeps what an installer says of its work.
func (i *installer) progress(r *http.Request, from netip.Addr) (any, error) {
	var p api.Progress
	if err := decodeBody(r.Body, &p); err != nil {
		return nil, err
	}
	if err := i.authorise(p.Host, from); err != nil {
		return nil, err
	}
	if err := checkProgress(p); err != nil {
		return nil, err
	}
	_, err := i.hosts.Update(r.Context(), p.Host, func(h *Host) error {
		note(h, p.Host)
		h.Progress = &p
		if p.Phase == phaseFailed {
			h.LastError = p.Text
		}
		if !h.Bootable() {
			return nil // a late word of the installer that has finished
		}
		if h.State = Installing; p.Phase == phaseFailed {
			h.State = Failed
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	level := slog.LevelInfo
	if p.Phase == phaseFailed {
		level = slog.LevelError
	}
	i.log.Log(r.Context(), level, "install progress", "mac", p.Host.MAC, "phase", p.Phase, "done", p.Done, "total", p.Total, "text", p.Text)
	return nil, nil
}

// phaseFailed is the phase of an installer that gave up.
const phaseFailed = "failed"

func checkProgress(p api.Progress) error {
	if p.Phase == "" || len(p.Phase) > maxPhase {
		return refused(http.StatusBadRequest, "progress: a phase of %d bytes, want 1 to %d", len(p.Phase), maxPhase)
	}
	for _, c := range p.Phase {
		if c > unicode.MaxASCII || !unicode.IsPrint(c) {
			return refused(http.StatusBadRequest, "progress: phase %q is not printable ASCII", p.Phase)
		}
	}
	if len(p.Text) > maxText || !utf8.ValidString(p.Text) {
		return refused(http.StatusBadRequest, "progress: a text of %d bytes, want UTF-8 of at most %d", len(p.Text), maxText)
	}
	if p.Done < 0 || p.Total < 0 {
		return refused(http.StatusBadRequest, "progress: %d of %d is negative", p.Done, p.Total)
	}
	return nil
}

// record stores an install record, and then hands it on. From here on the host
// boots from its disk. The same record again is answered as the first time;
// another one is refused unless a reinstall was asked for, because whoever
// replaces a record chooses which TPM is enrolled.
func (i *installer) record(r *http.Request, from netip.Addr) (any, error) {
	var rec api.Record
	if err := decodeBody(r.Body, &rec); err != nil {
		return nil, err
	}
	if err := i.authorise(rec.Host, from); err != nil {
		return nil, err
	}
	// The form in which a store will give it back, to compare with.
	body, err := json.Marshal(rec.Record)
	if err != nil || len(body) == 0 || body[0] != '{' {
		return nil, refused(http.StatusBadRequest, "install record: want a JSON object")
	}
	rec.Record = body
	fresh := false
	host, err := i.hosts.Update(r.Context(), rec.Host, func(h *Host) error {
		if fresh = h.Bootable(); !fresh {
			if !bytes.Equal(h.Record, body) {
				return refused(http.StatusConflict, "host %s has another install record already, from %s", rec.Host.MAC, h.Installed.Format(time.RFC3339))
			}
			return nil
		}
		note(h, rec.Host)
		h.State, h.Installed, h.Reinstall = Installed, i.now().UTC().Truncate(time.Second), false
		h.Record, h.Delivered, h.LastError = body, false, ""
		return nil
	})
	if err != nil {
		return nil, err
	}
	if fresh {
		i.log.Info("host installed", "mac", host.Key.MAC, "uuid", host.Key.UUID)
	}
	if host.Delivered {
		return nil, nil
	}
	// The record is safe, so the installer is done even if the sink is not.
	err = i.deliver(r.Context(), host)
	if errors.Is(err, ErrRecordRefused) {
		return nil, refused(http.StatusUnprocessableEntity, "%v", err)
	}
	if err != nil && !errors.Is(err, errDelivering) {
		i.log.Error("install record not delivered, will try again", "mac", host.Key.MAC, "error", err)
	}
	return nil, nil
}

// errDelivering says that a record is with the sink already.
var errDelivering = errors.New("the record is being delivered")

// deliver hands a stored record to the sink and notes how that went.
func (i *installer) deliver(ctx context.Context, h Host) error {
	i.mu.Lock()
	if i.busy[h.Key.MAC] {
		i.mu.Unlock()
		return errDelivering
	}
	i.busy[h.Key.MAC] = true
	i.mu.Unlock()
	defer func() {
		i.mu.Lock()
		delete(i.busy, h.Key.MAC)
		i.mu.Unlock()
	}()
	offer, cancel := context.WithTimeout(ctx, deliveryTimeout)
	sinkErr := i.records.Record(offer, api.Record{Host: h.Key, Record: h.Record})
	cancel()
	if sinkErr != nil && !errors.Is(sinkErr, ErrRecordRefused) {
		return sinkErr
	}
	// Whatever was decided is decided, also if the installer has gone away.
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	_, err := i.hosts.Update(ctx, h.Key, func(now *Host) error {
		if !bytes.Equal(now.Record, h.Record) {
			return nil // replaced meanwhile
		}
		if sinkErr == nil {
			now.Delivered = true
			return nil
		}
		now.State, now.LastError = Failed, sinkErr.Error()
		now.Installed, now.Record = time.Time{}, nil
		return nil
	})
	return errors.Join(sinkErr, err)
}

// redeliver offers stored records to the sink until ctx ends: those of a crash
// before, and those that it could not take at first.
func (i *installer) redeliver(ctx context.Context) error {
	for {
		hosts, err := i.hosts.All(ctx)
		if err != nil && ctx.Err() == nil {
			i.log.Error("list hosts for delivery", "error", err)
		}
		for _, h := range hosts {
			if h.Installed.IsZero() || h.Delivered || ctx.Err() != nil {
				continue
			}
			switch err := i.deliver(ctx, h); {
			case err == nil:
				i.log.Info("install record delivered late", "mac", h.Key.MAC)
			case !errors.Is(err, errDelivering):
				i.log.Error("install record not delivered", "mac", h.Key.MAC, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(deliveryRetry):
		}
	}
}

// decodeBody decodes one bounded JSON value, and nothing after it.
func decodeBody(body io.Reader, into any) error {
	d := json.NewDecoder(body)
	err := d.Decode(into)
	if err == nil {
		if _, err = d.Token(); err == io.EOF {
			return nil
		} else if err == nil {
			err = errors.New("more than one JSON value")
		}
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return refused(http.StatusRequestEntityTooLarge, "the body is larger than %d bytes", tooLarge.Limit)
	}
	return refused(http.StatusBadRequest, "decode body: %v", err)
}
