module github.com/ctplan/ctplan

go 1.25.0
