package console

import (
	"context"
	"log/slog"
	"strings"
)

// Handler returns a slog.Handler that prints records of at least that level,
// one line each: message, then key=value pairs.
func (p *Printer) Handler(level slog.Level) slog.Handler {
	return &handler{printer: p, level: level}
}

type handler struct {
	printer *Printer
	level   slog.Level
	prefix  string // of groups, with a final dot
	attrs   string // formatted, with a leading space each
}

func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	if r.Level != slog.LevelInfo {
		b.WriteString(strings.ToLower(r.Level.String()))
		b.WriteString(": ")
	}
	b.WriteString(r.Message)
	b.WriteString(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		appendAttr(&b, h.prefix, a)
		return true
	})
	h.printer.Step("%s", b.String())
	return nil
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	var b strings.Builder
	b.WriteString(h.attrs)
	for _, a := range attrs {
		appendAttr(&b, h.prefix, a)
	}
	n := *h
	n.attrs = b.String()
	return &n
}

func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	n := *h
	n.prefix += name + "."
	return &n
}

func appendAttr(b *strings.Builder, prefix string, a slog.Attr) {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, m := range v.Group() {
			appendAttr(b, prefix, m)
		}
		return
	}
	if a.Key == "" {
		return
	}
	b.WriteString(" ")
	b.WriteString(prefix)
	b.WriteString(a.Key)
	b.WriteString("=")
	s := v.String()
	if s == "" || strings.ContainsAny(s, " \t\n\"=") {
		s = `"` + strings.ReplaceAll(s, `"`, `'`) + `"`
	}
	b.WriteString(s)
}
