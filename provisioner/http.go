package provisioner

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sealift/sealift/provisioner/api"
)

// Bounds of the HTTP server.
const (
	httpMaxConns     = 1024 // connections at once; further ones are closed
	httpMaxRequests  = 64   // install requests at once; further ones are told to come back
	httpMaxHeader    = 16 << 10
	httpReadTimeout  = 30 * time.Second // of a request and its body
	httpIdleTimeout  = 2 * time.Minute
	httpWriteGrace   = time.Minute // to send an answer, and beyond it
	httpMinRate      = 128 << 10   // bytes per second that a client has to take
	httpCloseTimeout = 2 * time.Second
)

// bootImage is one installer in memory. TFTP and HTTP send the same bytes.
type bootImage struct {
	data    []byte
	etag    string
	changed time.Time
}

// loadBootImage reads an installer and checks that it is a PE file at all: a
// wrong path is better found here than by a box that hangs at a black screen.
func loadBootImage(path string) (*bootImage, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("installer: %w", err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("installer: %w", err)
	}
	if len(data) < 64 || data[0] != 'M' || data[1] != 'Z' {
		return nil, fmt.Errorf("installer %s: it does not begin with MZ, so it is not an EFI program", path)
	}
	sum := sha256.Sum256(data)
	return &bootImage{data: data, etag: `"` + hex.EncodeToString(sum[:16]) + `"`, changed: info.ModTime()}, nil
}

// imageArtifacts are the files of a built image that are served, and their types.
func artifactType(name string) (string, bool) {
	switch name {
	case manifestFile, bundleFile:
		return "application/json", true
	case diskFile:
		return "application/zstd", true
	case defaultBootFile:
		return "application/efi", true
	}
	return "", false
}

// httpHandler serves boot files, images and the install workflow. It never
// redirects: UEFI firmware takes any status from 300 on for a failure, so the
// path is taken as it comes, without the cleaning of http.ServeMux.
type httpHandler struct {
	boot    map[string]*bootImage // by file name
	images  map[string]string     // name: directory
	install *installer
	slots   chan struct{} // one for each install request under way
	log     *slog.Logger
}

func (h *httpHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.log.Debug("http request", "client", r.RemoteAddr, "method", r.Method, "path", r.URL.Path, "range", r.Header.Get("Range"), "agent", r.UserAgent())
	parts := pathParts(r.URL.Path)
	switch {
	case len(parts) == 2 && parts[0]+"/" == bootDir:
		h.serveBoot(w, r, parts[1])
	case len(parts) == 3 && parts[0]+"/" == api.PathImages:
		h.serveImage(w, r, parts[1], parts[2])
	default:
		h.serveInstall(w, r, strings.Join(parts, "/"))
	}
}

// pathParts splits a path and drops empty elements, because firmware and
// people join URLs with too many slashes. Elements are only ever compared, so
// "." and ".." are names like any other, which nothing has.
func pathParts(path string) []string {
	var parts []string
	for p := range strings.SplitSeq(path, "/") {
		if p == "" {
			continue
		}
		if parts = append(parts, p); len(parts) > 8 {
			return nil
		}
	}
	return parts
}

func readOnly(w http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return true
	}
	w.Header().Set("Allow", "GET, HEAD")
	http.Error(w, "only GET and HEAD are possible here", http.StatusMethodNotAllowed)
	return false
}

func (h *httpHandler) serveBoot(w http.ResponseWriter, r *http.Request, name string) {
	if !readOnly(w, r) {
		return
	}
	image, ok := h.boot[name]
	if !ok {
		http.Error(w, "no such boot file", http.StatusNotFound)
		return
	}
	allowTime(w, int64(len(image.data)))
	// edk2 needs the type, and resumes a broken transfer with the tag.
	w.Header().Set("Content-Type", "application/efi")
	w.Header().Set("ETag", image.etag)
	http.ServeContent(w, r, "", image.changed, bytes.NewReader(image.data))
}

func (h *httpHandler) serveImage(w http.ResponseWriter, r *http.Request, image, artifact string) {
	if !readOnly(w, r) {
		return
	}
	dir, known := h.images[image]
	kind, served := artifactType(artifact)
	if !known || !served {
		http.Error(w, "no such image or artifact", http.StatusNotFound)
		return
	}
	f, err := os.Open(filepath.Join(dir, artifact))
	if errors.Is(err, fs.ErrNotExist) {
		http.Error(w, "this image has no such artifact", http.StatusNotFound)
		return
	}
	if err != nil {
		h.log.Error("open an artifact", "image", image, "artifact", artifact, "error", err)
		http.Error(w, "the artifact cannot be read", http.StatusInternalServerError)
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		h.log.Error("open an artifact: not a regular file", "image", image, "artifact", artifact, "error", err)
		http.Error(w, "the artifact cannot be read", http.StatusInternalServerError)
		return
	}
	allowTime(w, info.Size())
	w.Header().Set("Content-Type", kind)
	w.Header().Set("ETag", `"`+strconv.FormatInt(info.Size(), 36)+"-"+strconv.FormatInt(info.ModTime().UnixNano(), 36)+`"`)
	http.ServeContent(w, r, "", info.ModTime(), f)
}

// allowTime gives an answer the time that its size needs on a slow line. It
// leaves the writer unwrapped, so that files go out by sendfile.
func allowTime(w http.ResponseWriter, size int64) {
	limit := httpWriteGrace + time.Duration(size/httpMinRate)*time.Second
	// A server without deadlines has the timeout of the whole server.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(limit))
}

// serveInstall passes a request to the install workflow.
func (h *httpHandler) serveInstall(w http.ResponseWriter, r *http.Request, path string) {
	var handle func(*http.Request, netip.Addr) (any, error)
	method := http.MethodPost
	switch path {
	case api.PathPlan:
		handle, method = h.install.plan, http.MethodGet
	case api.PathProgress:
		handle = h.install.progress
	case api.PathRecord:
		handle = h.install.record
	default:
		http.Error(w, "no such path", http.StatusNotFound)
		return
	}
	if r.Method != method {
		w.Header().Set("Allow", method)
		http.Error(w, "only "+method+" is possible here", http.StatusMethodNotAllowed)
		return
	}
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	default:
		w.Header().Set("Retry-After", "1")
		http.Error(w, "too many requests at once", http.StatusServiceUnavailable)
		return
	}
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		http.Error(w, "the client's address is not known", http.StatusBadRequest)
		return
	}
	allowTime(w, 0)
	r.Body = http.MaxBytesReader(w, r.Body, api.MaxBody)
	answer, err := handle(r, from.Addr().Unmap())
	writeAnswer(w, h.log, r, answer, err)
}

// newHTTPServer builds the server around the handler.
func newHTTPServer(h http.Handler, log *slog.Logger) *http.Server {
	var conns atomic.Int64
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: httpReadTimeout,
		ReadTimeout:       httpReadTimeout,
		WriteTimeout:      httpWriteGrace,
		IdleTimeout:       httpIdleTimeout,
		MaxHeaderBytes:    httpMaxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		// Counting here and not in the listener leaves the connections
		// unwrapped, which sendfile needs.
		ConnState: func(c net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				if conns.Add(1) > httpMaxConns {
					c.Close()
				}
			case http.StateClosed, http.StateHijacked:
				conns.Add(-1)
			}
		},
	}
}
