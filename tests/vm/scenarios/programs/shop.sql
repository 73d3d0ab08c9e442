\set ON_ERROR_STOP on
\pset tuples_only on
drop table if exists goods;
create table goods (id int primary key, name text);
insert into goods select i, i || ' ' || :'marker' from generate_series(1, 3000) i;
\copy goods to /tmp/goods
truncate goods;
\copy goods from /tmp/goods
select count(*), md5(string_agg(id || name, ',' order by id)) from goods;
select md5(repeat(:'marker', 5000)), repeat(:'marker', 1000);
select * from goods order by id limit 500;
