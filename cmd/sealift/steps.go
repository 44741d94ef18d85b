package main

import "github.com/sealift/sealift/cmd/sealift/internal/progress"

// steps turns a stream of updates into one progress step after another.
type steps struct {
	log  *progress.Reporter
	name string
	cur  *progress.Step
}

func newSteps(log *progress.Reporter) *steps { return &steps{log: log} }

func (s *steps) update(name string, done, total int64) {
	if name != s.name {
		s.done()
		s.name, s.cur = name, s.log.Step(name)
	}
	s.cur.Update(done, total)
}

func (s *steps) done() {
	if s.cur != nil {
		s.cur.Done("")
		s.cur, s.name = nil, ""
	}
}

func (s *steps) fail(err error) {
	if s.cur != nil {
		s.cur.Fail(err)
		s.cur, s.name = nil, ""
	}
}
