"""How questions are worded: a wide grammar for training and a separate one that is held out.

Held-out phrasings share no sequence of four words with training or pretraining. Names are masked before the comparison:
a table is `<t>`, a column `<c>`, a text value `<v>`, a number `<n>`. The held-out grammar is enumerated, its sequences are
collected, and training draws again whenever a phrasing contains one of them.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from random import Random
from typing import Literal

from lorica.quickstart.grammar import Grammar, Shape

Split = Literal["train", "test"]

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
OPERATORS = ("gt", "lt", "ge", "le", "eq", "text")
AGGREGATES = ("avg", "sum", "min", "max")
DIRECTIONS = ("desc", "asc")
WORDS_IN_A_SEQUENCE = 4

_CONDITIONS = r"""
prep:gt = above {v} | over {v} | greater than {v} | more than {v} | higher than {v} | larger than {v} | bigger than {v} | beyond {v} | exceeding {v} | past {v} | in excess of {v} | of more than {v} | of over {v} | that is above {v} | strictly above {v} | well over {v} | topping {v} | > {v}
prep:lt = below {v} | under {v} | less than {v} | smaller than {v} | lower than {v} | fewer than {v} | beneath {v} | of less than {v} | of under {v} | short of {v} | that is below {v} | strictly below {v} | well under {v} | not even {v} | < {v}
prep:ge = at least {v} | of at least {v} | no less than {v} | not less than {v} | {v} or more | {v} or above | {v} or higher | {v} and up | {v} or greater | {v} and above | of {v} or more | of {v} and up | from {v} up | from {v} upwards | a minimum of {v} | not below {v} | not under {v} | no lower than {v} | no smaller than {v} | greater than or equal to {v} | above or equal to {v} | at or above {v} | starting at {v} | >= {v}
prep:le = at most {v} | of at most {v} | no more than {v} | not more than {v} | {v} or less | {v} or below | {v} or lower | {v} and down | {v} or under | {v} or fewer | of {v} or less | of {v} and below | up to {v} | of up to {v} | a maximum of {v} | not above {v} | not over {v} | no higher than {v} | no greater than {v} | less than or equal to {v} | below or equal to {v} | at or below {v} | ending at {v} | <= {v}
prep:eq = of {v} | of exactly {v} | exactly {v} | equal to {v} | {v} | of just {v} | precisely {v} | being {v} | = {v} | that is exactly {v} | the same as {v}
prep:text = {v} | of {v} | equal to {v} | = {v} | being {v} | set to {v} | marked {v} | listed as {v} | the same as {v} | given as {v} | recorded as {v}
pred:gt = is [prep] | is [prep] | was [prep] | exceeds {v} | goes over {v} | tops {v} | passes {v} | goes beyond {v} | surpasses {v} | stays above {v} | climbs above {v} | climbs past {v} | rises above {v} | lies over {v} | comes to more than {v} | works out to more than {v} | gets past {v} | comes in higher than {v} | outdoes {v} | is not {v} or less | turns up above {v} | sits above {v}
pred:lt = is [prep] | is [prep] | was [prep] | falls below {v} | stays under {v} | drops under {v} | goes below {v} | does not reach {v} | lies below {v} | sinks beneath {v} | sinks to less than {v} | comes to less than {v} | works out to less than {v} | comes in lower than {v} | never reaches {v} | fails to reach {v} | is not {v} or more | turns up below {v} | sits below {v}
pred:ge = is [prep] | is [prep] | was [prep] | reaches {v} | reaches at least {v} | meets or exceeds {v} | does not fall below {v} | never drops below {v} | does not sink below {v} | never goes under {v} | is not less than {v} | comes to {v} or more | comes to at least {v} | stays at {v} or above | starts at {v} | equals or exceeds {v} | works out to {v} or more | sits at or above {v}
pred:le = is [prep] | is [prep] | was [prep] | does not exceed {v} | never exceeds {v} | does not climb above {v} | never climbs past {v} | does not go over {v} | is not more than {v} | comes to {v} or less | comes to at most {v} | stays at {v} or below | stops at {v} | stays within {v} | is capped at {v} | never goes over {v} | works out to {v} or less | sits at or below {v}
pred:eq = is {v} | is [prep] | was {v} | equals {v} | is exactly {v} | is equal to {v} | matches {v} | comes to {v} | comes to exactly {v} | works out to {v} | stands at {v} | shows {v} | = {v} | turns up as {v}
pred:text = is {v} | is {v} | was {v} | equals {v} | is equal to {v} | matches {v} | is set to {v} | is listed as {v} | says {v} | shows {v} | = {v} | is marked {v} | is called {v} | happens to be {v} | is put down as {v} | is noted as {v} | turns up as {v}
many:gt = more than {v} | over {v} | above {v} | upwards of {v} | in excess of {v}
many:lt = less than {v} | under {v} | fewer than {v} | below {v} | not even {v}
many:ge = at least {v} | no less than {v} | {v} or more | a minimum of {v} | not less than {v}
many:le = at most {v} | no more than {v} | {v} or less | up to {v} | a maximum of {v} | not more than {v}
many:eq = exactly {v} | {v} | just {v} | precisely {v}
many:text = {v}
and.phrase = and | and | and also | and at the same time | as well as | plus | together with
and.clause = and | and | and also | and at the same time | while
and.bare = and | and | and also | and at the same time | while
and.pred = and
phrase = {c} [prep] | {c} [prep] | a {c} [prep] | {c} values [prep] | the {c} [prep] | [many] {c} | [many] in {c} | [many] for {c} | [many] as their {c} | a value [prep] for {c}
phrase:text = {c} [prep] | {c} {v} | {c} {v} | a {c} of {v} | {v} as {c} | {v} as the {c} | {v} for {c} | {v} in {c} | {v} under {c} | the {c} {v} | {v} written in {c} | {v} down for {c} | the value {v} in {c}
bare = {c} [pred]
clause = {c} [pred] | {c} [pred] | the {c} [pred] | their {c} [pred] | the value of {c} [pred] | we see {c} [prep]
"""

_TRAIN_COMMON = r"""
show = show | show me | list | give | give me | return | display | find | find me | fetch | get | get me | print | report | tell me | write out | write down | pull up | look up | please show | please list | please give me | i want | i need | i would like | i want to see | we need | let me see | let us see | extract | retrieve | present | output | name | pick | hand me | bring up | identify | state | note | note down
ask = can you show | can you list | can you give me | could you find | could you list | would you get | will you show me | do you have | may i see | could i see | can i have | can we see
know = tell me | i want to know | i need to know | please tell me | do you know | can you tell me | could you say | let me know | i would like to know | say | find out | i wonder | i am curious | check | we want to know
the = | | the | all | all the | those | any | our | every one of the | these | just the | only the | the various
of = of | of | for | from | on | across | among | in | out of
where = where | where | if | when | whenever | in which | for which | provided | provided that | such that | given that | as long as | so long as | only where | in case | but only where | on condition that
have = have | have | have | show | carry | come with | possess | list | own | feature | record
with = with | with | with | having | showing | carrying | featuring | that have | that have | which have | that show | that come with | that own | who have | listing | that carry
rel = whose [*bare] | whose [*bare] | [with] [*phrase] | [with] [*phrase] | [where] [*clause] | [where] [*clause] | , but only those with [*phrase] | , keeping those whose [*bare] | for those with [*phrase] | once [*clause]
first = where [*clause] | if [*clause] | when [*clause] | with [*phrase] | given [*phrase] | assuming [*clause] | provided that [*clause] | whenever [*clause] | once [*clause] | given that [*clause] | looking only at [*phrase] | as long as [*clause]
w:none = | | | we have | on record | in the table | in the data | overall | altogether
w:some = [rel]
what = what is | what is | what's | what was | what would be | which is
"""

_TRAIN_FILTER = r"""
filter.all = [show] [the] {t} [rel]. | [show] [the] {t} [rel]. | [show] [the] {t} [rel]. | [ask] [the] {t} [rel]? | which {t} [have] [*phrase]? | which of the {t} [have] [*phrase]? | what {t} [have] [*phrase]? | what are the {t} [rel]? | which are the {t} [rel]? | are there any {t} [rel]? | are there {t} [rel]? | do any {t} [have] [*phrase]? | the {t} [rel]. | only {t} [rel]. | just {t} [rel], please. | [first], [show] [the] {t}. | [first], which {t} are there? | [first], what {t} do we have? | i only need {t} [rel]. | keep only {t} [rel]. | all rows of {t} [rel]. | every row of {t} [rel]. | [show] everything about {t} [rel]. | [show] full details for {t} [rel]. | [show] all columns of {t} [rel]. | for which {t} is [*phrase]? | filter the {t}: [*clause]. | filter {t} to those [with] [*phrase]. | reduce the {t} to those [rel]. | narrow it to {t} [rel]. | in {t}, find rows [where] [*clause]. | from {t}, [show] rows [rel]. | from the {t} take those [with] [*phrase]. | among the {t}, which ones [have] [*phrase]? | among {t}, [show] those [rel]. | out of the {t}, [show] the ones [with] [*phrase]. | i care about {t} [rel]. | drop the {t} unless [*clause]. | hide all {t} unless their {c0} [predone]. | skip {t} unless [*clause]. | [know] which {t} [have] [*phrase]. | [know] what {t} we have [rel]. | we are interested in {t} [rel]. | is there anything in {t} [rel]? | search {t} for rows [with] [*phrase]. | go over the {t} and [show] those [rel]. | pick out {t} [rel]. | pick out the {t} [with] [*phrase]. | let the {t} through [where] [*clause]. | leave out {t} unless [*clause].
predone = [*pred]
filter.col = [show] the {p} of [the] {t} [rel]. | [show] the {p} [of] [the] {t} [rel]. | [show] the {p} [of] [the] {t} [rel]. | [show] {p} [of] [the] {t} [rel]. | [show] every {p} [of] {t} [rel]. | [show] each {p} [of] [the] {t} [rel]. | [show] only the {p} of {t} [rel]. | [show] just the {p} [of] [the] {t} [rel]. | [ask] the {p} [of] [the] {t} [rel]? | [what] the {p} [of] [the] {t} [rel]? | what {p} do [the] {t} [rel] have? | which {p} do {t} [have] [where] [*clause]? | which {p} belongs to {t} [rel]? | what {p} belongs to the {t} [rel]? | for [the] {t} [rel], [show] the {p}. | for {t} [rel], what is the {p}? | for every one of the {t} [rel], [show] its {p}. | among {t} [rel], [show] the {p}. | from {t} [rel], [show] the {p}. | take {t} [rel] and [show] the {p}. | [first], [show] the {p} of [the] {t}. | [first], what is the {p} [of] [the] {t}? | [first], [show] each {p} [of] {t}. | the {p} [of] {t} [rel]. | the {p} of each of the {t} [rel]. | i need just the {p} [of] {t} [rel]. | [know] the {p} of {t} [rel]. | [know] what {p} the {t} [rel] have. | [know] which {p} goes with {t} [rel]. | in {t}, [what] the {p} [where] [*clause]? | in {t}, [show] the {p} [where] [*clause]. | keep {t} [rel] and [show] their {p}. | filter {t} to those [with] [*phrase] and [show] their {p}. | which {p} can be found [of] {t} [rel]? | what {p} does each of the {t} [rel] have? | looking at {t} [rel], what {p} do we see? | going over {t} [rel], [show] the {p}. | what do {t} [rel] have as {p}? | the {t} [rel]: what {p} do they show? | whose {p} is it [where] [*clause] in {t}? | what {p} applies to {t} [rel]? | we are interested in the {p} [of] {t} [rel].
"""

_TRAIN_AGGREGATE = r"""
agg:avg = average {a} | average {a} | mean {a} | average of {a} | mean of {a} | average of the {a} | mean of the {a} | average value of {a} | mean value of {a} | {a} on average | {a} averaged | average for {a} | mean for {a} | typical average {a} | average figure in {a} | arithmetic mean of {a}
agg:sum = total {a} | total {a} | sum of {a} | sum of the {a} | combined {a} | total of {a} | total of the {a} | overall sum of {a} | {a} in total | {a} altogether | {a} added up | summed {a} | sum over {a} | full total of {a} | total amount of {a} | {a} summed up | grand sum of {a} | {a} all together
agg:max = highest {a} | largest {a} | greatest {a} | maximum {a} | biggest {a} | top {a} | peak {a} | maximum of {a} | highest value of {a} | largest value of {a} | greatest value of {a} | maximum for {a} | biggest value in {a} | max {a} | single highest {a} | upper limit of {a} | largest number in {a} | very largest {a} | record high in {a}
agg:min = lowest {a} | smallest {a} | least {a} | minimum {a} | bottom {a} | minimum of {a} | lowest value of {a} | smallest value of {a} | least value of {a} | minimum for {a} | smallest value in {a} | min {a} | single lowest {a} | lower limit of {a} | smallest number in {a} | very smallest {a} | record low in {a}
compute = compute | calculate | work out | determine | figure out | tell me | give me | find | show | show me | report | get | please compute | i need | i want | let me know | can you give me | return | state | say | look up | derive | please report | please give | i would like | let me have | write down
do:avg = average | take the mean of | average out | take the average of | work out an average of
do:sum = add up | sum | sum up | total | add together | total up | take the sum of
do:max = take the maximum of | find the largest of | take the highest of | pick the biggest of | look for the peak of
do:min = take the minimum of | find the smallest of | take the lowest of | pick the least of | look for the bottom of
aggregate = [what] the [agg] of [the] {t} [w]? | [what] the [agg] [of] [the] {t} [w]? | [what] the [agg] [of] [the] {t} [w]? | [compute] the [agg] of [the] {t} [w]. | [compute] the [agg] [of] [the] {t} [w]. | [compute] the [agg] [of] [the] {t} [w]. | [compute] the [agg] [of] [the] {t} [w]. | the [agg] [of] [the] {t} [w]. | [agg] [of] {t} [w], please. | for [the] {t} [w], [compute] the [agg]. | for [the] {t} [w], what is the [agg]? | across [the] {t} [w], what is the [agg]? | over all {t} [w], [compute] the [agg]. | looking at {t} [w], what is the [agg]? | [do] the {a} of [the] {t} [w]. | [do] {a} [of] [the] {t} [w]. | [do] the {a} [of] [the] {t} [w]. | please [do] the {a} [of] {t} [w]. | [know] the [agg] [of] [the] {t} [w]. | [know] what the [agg] [of] {t} is [w]. | what [agg] do [the] {t} [w] have? | which [agg] do {t} [w] have? | take [the] {t} [w] and [do] the {a}. | take {t} [w] and [compute] the [agg]. | [aggown] | [aggown] | considering {t} [w], [compute] the [agg]. | go over {t} [w] and [do] the {a}. | in {t}, [do] the {a} [w]. | in {t} [what] the [agg] [w]? | how large is the [agg] [of] {t} [w]? | how much is the [agg] [of] {t} [w]? | what does the [agg] of {t} look like [w]? | i would like one number: the [agg] [of] {t} [w].
aggregate:some = [aggboth] | [aggboth] | [aggboth] | [first], [what] the [agg] [of] {t}? | [first], [compute] the [agg] [of] [the] {t}. | [first], [do] the {a} [of] {t}. | keep {t} [rel] and [do] the {a}. | counting only {t} [rel], [what] the [agg]? | using only {t} [rel], [compute] the [agg]. | [what] the [agg] [where] [*clause] in {t}?
aggboth = [what] the [agg] [of] [the] {t} [w]? | [compute] the [agg] [of] [the] {t} [w]. | [compute] the [agg] [of] [the] {t} [w]. | for [the] {t} [w], [compute] the [agg]. | [do] the {a} [of] [the] {t} [w]. | [know] the [agg] [of] [the] {t} [w]. | what [agg] do [the] {t} [w] have? | take [the] {t} [w] and [do] the {a}. | [aggown] | looking at {t} [w], what is the [agg]?
aggown:avg = what {a} do {t} [w] have on average? | on average, what is the {a} of {t} [w]? | what do {t} [w] average for {a}? | how much {a} do {t} [w] average? | averaging over {t} [w], what is the {a}? | how much is {a} for the average of {t} [w]?
aggown:sum = how much {a} do {t} [w] have in total? | how much {a} is there in all for {t} [w]? | in total, how much {a} do {t} [w] have? | what does the {a} of {t} [w] add up to? | summing over {t} [w], what is the {a}? | how much {a} do the {t} [w] have together? | what do we get adding up {a} for {t} [w]?
aggown:max = how high does {a} go for {t} [w]? | how large does the {a} of {t} [w] get? | at most, how much {a} do {t} [w] have? | what is the most {a} among {t} [w]? | how big can {a} get for {t} [w]? | what is the top end of {a} for {t} [w]?
aggown:min = how low does {a} go for {t} [w]? | how small does the {a} of {t} [w] get? | at the least, how much {a} do {t} [w] have? | what is the least {a} among {t} [w]? | how little {a} can {t} [w] have? | what is the low end of {a} for {t} [w]?
count = how many {t} are there [w]? | how many {t} are there [w]? | how many {t} do we have [w]? | how many {t} exist [w]? | count [the] {t} [w]. | count [the] {t} [w]. | count how many {t} there are [w]. | [what] the number of {t} [w]? | [what] the count of {t} [w]? | [compute] the number of {t} [w]. | [compute] the number of {t} [w]. | [compute] the count of {t} [w]. | the number of {t} [w]. | [know] how many {t} there are [w]. | [know] how many {t} we have [w]. | [know] the number of {t} [w]. | how many rows does {t} have [w]? | how many of the {t} are there [w]? | tally the {t} [w]. | tally up {t} [w]. | a count of {t} [w], please. | how large is the number of {t} [w]? | [compute] the size of the set of {t} [w]. | the amount of {t} [w]. | number of {t} [w]? | how many entries are in {t} [w]? | in {t}, how many rows are there [w]? | how big is the group of {t} [w]? | please count {t} [w]. | can you count the {t} [w]? | how many {t} can you find [w]? | make a tally of the {t} [w].
count:some = [countboth] | [countboth] | how many {t} [have] [*phrase]? | how many {t} [have] [*phrase]? | how many of the {t} [have] [*phrase]? | among {t}, how many [have] [*phrase]? | out of all {t}, how many [have] [*phrase]? | [first], how many {t} are there? | [first], count the {t}. | for how many {t} is [*phrase]? | [know] how many {t} [have] [*phrase]. | how often is [*phrase] in {t}? | how many {t} are left [where] [*clause]? | how many {t} remain if [*clause]? | keep {t} [rel] and count them. | count only {t} [rel]. | [know] how many of the {t} [have] [*phrase]. | how many times do {t} [have] [*phrase]?
countboth = how many {t} are there [w]? | how many {t} do we have [w]? | count [the] {t} [w]. | [what] the number of {t} [w]? | [compute] the number of {t} [w]. | [know] how many {t} there are [w]. | tally the {t} [w]. | [compute] the count of {t} [w]. | how many {t} exist [w]? | the number of {t} [w].
"""

_TRAIN_ORDER = r"""
most:desc = highest | highest | largest | greatest | biggest | most | top | maximum | very highest
most:asc = lowest | lowest | smallest | least | fewest | minimum | bottom | very lowest
best:desc = highest | largest | greatest | biggest | most
best:asc = lowest | smallest | least
dir:desc = descending | in descending order | from high to low | from highest to lowest | from the top down | largest first | biggest first | highest first | in decreasing order | starting with the largest | with the highest first | from most to least | in falling order | from large to small
dir:asc = ascending | in ascending order | from low to high | from lowest to highest | from the bottom up | smallest first | lowest first | least first | in increasing order | starting with the smallest | with the lowest first | from least to most | in rising order | from small to large
head:desc = top | top | leading | first
head:asc = bottom | bottom | last
row = row | entry | record | item | line
sort = sort | order | rank | arrange | sorting | put in order
lead:desc = is highest | is largest | is greatest | is at its peak | is biggest | peaks | is at its highest | reaches its maximum | is not topped
lead:asc = is lowest | is smallest | is least | is at its lowest | is at its minimum | reaches its minimum | hits bottom | is the least
order.one.all = which of the {t} has the [most] {a}? | which one of the {t} has the [most] {a}? | among the {t}, which has the [most] {a}? | [show] the one among {t} with the [most] {a}. | [show] the {t} [row] with the [most] {a}. | [show] the {t} [row] with the [most] {a}. | [show] the [row] of {t} with the [most] {a}. | [show] the [row] in {t} having the [most] {a}. | which [row] of {t} has the [most] {a}? | which {t} [row] has the [most] {a}? | what {t} [row] has the [most] {a}? | out of all {t}, [show] the one with the [most] {a}. | of all {t}, which one has the [most] {a}? | the {t} [row] with the [most] {a}. | the single [row] of {t} with the [most] {a}. | [show] the {t} [row] where {a} [lead]. | for which {t} [row] is the {a} the [best]? | in {t}, which [row] has the [most] {a}? | [show] one {t} [row], the one with the [most] {a}. | who among the {t} has the [most] {a}? | [know] which of the {t} has the [most] {a}. | [know] which {t} [row] has the [most] {a}. | sort {t} by {a} [dir] and [show] only the first. | which of the {t} [have] the [most] {a}? | where in {t} is the {a} [best]? | whose {a} is the [best] among {t}? | [show] whichever of the {t} has the [best] {a}. | looking at {a}, which {t} [row] is the [best]?
order.one.col = which {p} has the [most] {a} [of] {t}? | which {p} has the [most] {a} [of] [the] {t}? | [show] the {p} of the {t} [row] with the [most] {a}. | [show] the {p} of the {t} [row] with the [most] {a}. | [show] the {p} of the one among {t} with the [most] {a}. | [show] the {p} with the [most] {a} [of] {t}. | [what] the {p} of the {t} [row] with the [most] {a}? | [what] the {p} with the [most] {a} [of] [the] {t}? | [what] the {p} [of] the [row] of {t} having the [most] {a}? | what {p} has the [most] {a} [of] {t}? | of all {t}, which {p} has the [most] {a}? | among {t}, which {p} has the [most] {a}? | for the {t} [row] with the [most] {a}, [show] the {p}. | the {p} of the {t} [row] with the [most] {a}. | the {p} where {a} [lead] in {t}. | [show] the {p} [of] the {t} [row] where {a} [lead]. | in {t}, which {p} has the [most] {a}? | in {t}, [show] the {p} with the [most] {a}. | [know] which {p} has the [most] {a} in {t}. | [know] the {p} of the {t} [row] with the [most] {a}. | which {p} comes with the [most] {a} in {t}? | what {p} goes with the [most] {a} [of] {t}? | what {p} belongs to the {t} [row] with the [most] {a}? | take the {t} [row] with the [most] {a} and [show] its {p}. | sort {t} by {a} [dir] and [show] the {p} of the first. | [show] the {p} of whichever of the {t} has the [best] {a}. | at which {p} does the {a} of {t} reach the [best]? | the one with the [most] {a} among {t}: what {p} does it have?
order.many.all = [show] the {n} {t} with the [most] {a}. | [show] the {n} {t} with the [most] {a}. | [show] {n} {t} with the [most] {a}. | [show] the [head] {n} {t} by {a}. | [show] the [head] {n} {t} by {a}. | the [head] {n} {t} by {a}. | [head] {n} {t} in terms of {a}, please. | which {n} {t} have the [most] {a}? | which {n} of the {t} have the [most] {a}? | what are the {n} {t} with the [most] {a}? | what are the [head] {n} {t} by {a}? | the {n} {t} with the [most] {a}. | [show] the first {n} {t} by {a} [dir]. | [show] the first {n} {t} sorted by {a} [dir]. | [show] {n} {t} sorted by {a} [dir]. | [show] {n} {t}, {a} [dir]. | [sort] {t} by {a} [dir] and [show] the first {n}. | [sort] the {t} by {a} [dir] and keep {n}. | [sort] {t} by {a} [dir] and stop after {n}. | [sort] {t} by {a} [dir], then take {n}. | [sort] the {t} [dir] by {a}, only {n} of them. | [show] {t} by {a} [dir], at most {n}. | [show] {t} by {a} [dir], limited to {n}. | of all {t}, [show] the {n} with the [most] {a}. | among {t}, which {n} have the [most] {a}? | out of the {t}, [show] the {n} whose {a} is [best]. | [show] the {n} {t} whose {a} is [best]. | which {n} {t} are [best] in {a}? | in {t}, [show] the {n} rows with the [most] {a}. | [show] the {n} rows of {t} with the [best] {a}. | by {a}, [show] the [head] {n} {t}. | ranked by {a} [dir], [show] {n} {t}. | going by {a}, which {n} {t} are the [best]? | when sorted by {a} [dir], which {n} {t} come first? | [know] which {n} {t} have the [most] {a}. | {n} {t} are enough: those with the [most] {a}. | i care about the {n} {t} with the [best] {a}. | [show] no more than {n} {t}, by {a} [dir]. | [ask] the {n} {t} with the [most] {a}? | [ask] the [head] {n} {t} by {a}?
order.many.col = [show] the {p} of the {n} {t} with the [most] {a}. | [show] the {p} [of] the {n} {t} with the [most] {a}. | [show] the {p} [of] the {n} {t} with the [most] {a}. | [show] the {n} {p} values [of] {t} with the [most] {a}. | [show] the {p} of the [head] {n} {t} by {a}. | [show] the {p} [of] the [head] {n} {t} by {a}. | the {p} of the [head] {n} {t} by {a}. | [what] the {p} of the {n} {t} with the [most] {a}? | [what] the {p} [of] the [head] {n} {t} by {a}? | which {p} do the {n} {t} with the [most] {a} have? | what {p} do the [head] {n} {t} by {a} have? | [show] the {p} [of] the first {n} {t} by {a} [dir]. | [show] the {p} [of] the first {n} {t} sorted by {a} [dir]. | [show] the {p} [of] {n} {t} sorted by {a} [dir]. | [sort] {t} by {a} [dir] and [show] the {p} of the first {n}. | [sort] the {t} by {a} [dir] and [show] {n} of the {p}. | [sort] {t} by {a} [dir], then [show] the {p} of {n}. | for the {n} {t} with the [most] {a}, [show] the {p}. | for the [head] {n} {t} by {a}, what is the {p}? | of the {n} {t} with the [best] {a}, [show] the {p}. | which {n} {p} have the [most] {a} [of] {t}? | which {n} {p} have the [best] {a} in {t}? | the {p} [of] the {n} {t} with the [most] {a}. | [show] the {p} [of] the {n} {t} whose {a} is [best]. | in {t}, [show] the {p} of the {n} rows with the [most] {a}. | [show] the {p} of {t} by {a} [dir], at most {n}. | [show] the {p} [of] {t} by {a} [dir], limited to {n}. | [show] {p} [of] {t}, {a} [dir], only {n}. | by {a}, [show] the {p} of the [head] {n} {t}. | ranked by {a} [dir], [show] the {p} of {n} {t}. | take the {n} {t} with the [most] {a} and [show] their {p}. | [know] the {p} of the {n} {t} with the [most] {a}. | [know] which {p} the [head] {n} {t} by {a} have. | [show] the {n} [best] by {a} [of] {t}, just their {p}. | going by {a} [dir], what {p} do the first {n} {t} have?
"""

_TRAIN_GROUP = r"""
per = per {g} | per {g} | for each {g} | for each {g} | for every {g} | by {g} | by {g} | grouped by {g} | grouped by {g} | in each {g} | in every {g} | within each {g} | broken down by {g} | split by {g} | separately for each {g} | at each {g} | divided by {g} | for each value of {g} | for each distinct {g} | for each different {g} | organized by {g} | depending on {g} | listed by {g} | under every {g} | for all {g} values | over each {g}
perfirst = for each {g} | for every {g} | per {g} | by {g} | grouped by {g} | in each {g} | within each {g} | for each value of {g} | for each distinct {g} | under each {g} | going by {g} | split by {g} | taking each {g} alone | with one row per {g} | separately for each {g}
group.agg = [what] the [agg] of [the] {t} [per]? | [what] the [agg] [of] [the] {t} [per]? | [compute] the [agg] of [the] {t} [per]. | [compute] the [agg] [of] [the] {t} [per]. | [compute] the [agg] [of] [the] {t} [per]. | [compute] the [agg] [per] [of] [the] {t}. | [compute] the [agg] [per] [of] {t}. | [what] the [agg] [per] [of] {t}? | the [agg] [of] {t} [per]. | [agg] [of] {t} [per], please. | [perfirst], [compute] the [agg] of [the] {t}. | [perfirst], [compute] the [agg] [of] {t}. | [perfirst], what is the [agg] [of] {t}? | [perfirst], what [agg] do {t} have? | group {t} by {g} and [compute] the [agg]. | group the {t} by {g} and [do] the {a}. | group {t} by {g} and [do] the {a}. | split {t} by {g} and [compute] the [agg] of each group. | split the {t} by {g}, then [do] the {a}. | divide {t} by {g} and [compute] the [agg]. | break {t} down by {g} and [do] the {a}. | [do] the {a} of {t} [per]. | [do] {a} [of] [the] {t} [per]. | [perfirst], [do] the {a} [of] {t}. | [show] each {g} with the [agg] of its {t}. | [show] every {g} and the [agg] of its {t}. | [show] {g} and [agg] [of] {t}. | [show] each {g} along with the [agg] [of] {t}. | [show] the {g} together with the [agg] [of] {t}. | what [agg] does each {g} of {t} have? | what [agg] do {t} have [per]? | [know] the [agg] of {t} [per]. | [know] what the [agg] of {t} is [per]. | in {t}, [what] the [agg] [per]? | in {t}, [compute] the [agg] [per]. | how does the [agg] of {t} change by {g}? | how does the [agg] vary by {g} in {t}? | compare the [agg] of {t} by {g}. | compare the {g} groups of {t} by [agg]. | make a list of {g} and [agg] [of] {t}. | make groups of {t} by {g} and [compute] the [agg]. | a table of the [agg] of {t} [per]. | one [agg] [per], from {t}.
group.count = how many {t} are there [per]? | how many {t} are there [per]? | how many {t} do we have [per]? | how many {t} exist [per]? | how many {t} does each {g} have? | how many {t} belong to each {g}? | how many {t} has every {g}? | count [the] {t} [per]. | count [the] {t} [per]. | count how many {t} there are [per]. | [show] the number of {t} [per]. | [show] the number of {t} [per]. | [show] the count of {t} [per]. | [compute] the number of [the] {t} [per]. | [what] the number of {t} [per]? | [what] the count of {t} [per]? | the number of {t} [per]. | number of {t} [per], please. | [perfirst], how many {t} are there? | [perfirst], how many {t} do we have? | [perfirst], count the {t}. | [perfirst], [show] the number of {t}. | [perfirst], [compute] the count of {t}. | group {t} by {g} and count them. | group the {t} by {g} and count each group. | split {t} by {g} and count them. | divide the {t} by {g} and [show] the size of each group. | break {t} down by {g} and count. | [show] each {g} with its number of {t}. | [show] every {g} and how many {t} it has. | [show] {g} and the number of {t}. | [show] each {g} along with the count of {t}. | tally {t} [per]. | tally the {t} [per]. | [know] how many {t} there are [per]. | [know] the number of {t} [per]. | in {t}, how many rows are there [per]? | in {t}, count the rows [per]. | how often does each {g} occur in {t}? | how many times does every {g} appear in {t}? | how does the number of {t} vary by {g}? | compare the number of {t} by {g}. | how large is each {g} group of {t}? | how big is the group of {t} [per]? | make a list of {g} and the number of {t}. | make groups of {t} by {g} and count each one. | a table of the count of {t} [per]. | sizes of the {g} groups in {t}.
"""

_TRAIN_JOIN = r"""
link = that belong to | belonging to | linked to | that are linked to | connected to | tied to | joined with | joined to | attached to | assigned to | that go with | going with | related to | that have | of | from | with | under | in | paired with | matched to | which belong to | that hang on | listed under
whichu = {u} [rel] | {u} [rel] | the {u} [rel] | any {u} [rel] | those {u} [rel]
join = [show] the {p} of {t} [link] [whichu]. | [show] the {p} of [the] {t} [link] [whichu]. | [show] the {p} [of] [the] {t} [link] [whichu]. | [show] {p} [of] {t} [link] [whichu]. | [show] each {p} [of] {t} [link] [whichu]. | [ask] the {p} of {t} [link] [whichu]? | [what] the {p} of {t} [link] [whichu]? | [what] the {p} [of] [the] {t} [link] [whichu]? | what {p} do {t} [link] [whichu] have? | which {p} do {t} [link] [whichu] have? | for {u} [rel], [show] the {p} of their {t}. | for {u} [rel], what is the {p} of the {t}? | for {u} [rel], [show] the {p} [of] the [linked] {t}. | for [the] {t} [link] [whichu], [show] the {p}. | from {u} [rel], go to their {t} and [show] the {p}. | take {u} [rel] and [show] the {p} of their {t}. | find {u} [rel] and then [show] the {p} of the [linked] {t}. | match {t} with {u} and [show] the {p} [where] [*clause]. | join {t} with {u} and [show] the {p} [where] [*clause]. | join {t} and {u}: [show] the {p} [where] [*clause]. | combine {t} and {u}, then [show] the {p} [where] [*clause]. | connect {t} to {u} and [show] {p} [rel]. | [show] the {p} of {t} whose {u} [have] [*phrase]. | [show] the {p} [of] {t} whose {u} [have] [*phrase]. | which {p} belongs to {t} whose {u} [have] [*phrase]? | the {p} of {t} [link] [whichu]. | looking at {u} [rel], what {p} do their {t} have? | [first] for {u}, [show] the {p} of their {t}. | [first] in {u}, [show] the {p} of the [linked] {t}. | [first] in {u}, what is the {p} of the {t}? | among {t} [link] [whichu], [show] the {p}. | [know] the {p} of {t} [link] [whichu]. | [know] what {p} the {t} [link] [whichu] have. | using {t} and {u}, [show] the {p} [where] [*clause]. | across {t} and {u}, [show] the {p} [rel]. | go from {u} [rel] to their {t} and [show] each {p}. | which {p} can be found among {t} [link] [whichu]? | the {u} [rel]: what {p} do their {t} have? | keep {t} whose {u} [have] [*phrase] and [show] the {p}. | follow the {t} to {u} [rel] and [show] the {p}. | [show] the {p} of {t} if the [linked] {u} [have] [*phrase].
linked = linked | connected | matching | related | joined | attached | corresponding
"""

_HELD_OUT = r"""
pair = [*bare] | [*phrase]
and.bare = while
and.phrase = plus
pred:gt = turns out greater than {v} | comes in above {v} | climbs over {v} | ends up more than {v}
pred:lt = turns out less than {v} | comes in below {v} | sinks under {v} | ends up smaller than {v}
pred:ge = turns out no less than {v} | comes in at {v} or more | never sinks below {v} | ends up at least {v}
pred:le = turns out no more than {v} | comes in at {v} or less | never climbs over {v} | ends up at most {v}
pred:eq = turns out to be {v} | comes in at exactly {v} | ends up equal to {v}
pred:text = turns out to be {v} | reads {v} | ends up as {v}
phrase:gt = {c} somewhere above {v} | {c} figures over {v} | a {c} bigger than just {v}
phrase:lt = {c} somewhere below {v} | {c} figures under {v} | a {c} lower than just {v}
phrase:ge = {c} figures of {v} and up | a {c} no lower than just {v} | {c} somewhere from {v} upwards
phrase:le = {c} figures of {v} and below | a {c} no higher than just {v} | {c} somewhere up to {v}
phrase:eq = {c} figures of exactly {v} | a {c} precisely at {v}
phrase:text = {v} standing under {c} | {c} figuring as {v} | {v} given as their {c}
filter.all = Pick out whichever {t} have [*phrase]. | I only care about {t} once their [*bare]. | Go through the {t} and keep the ones where [*bare]. | Narrow the {t} down to ones showing [*phrase]. | Do we know of {t} that carry [*phrase]? | Please skip any {t} unless [*bare]. | What about {t} for which it holds that [*bare]? | The {t} to look at are those where [*bare].
bare = {c} [pred]
filter.col = Pick out the {p} from whichever {t} have [*phrase]. | Go through the {t} and note down their {p} where [*bare]. | I only care about the {p}, and just for {t} showing [*phrase]. | Supposing [*bare], what {p} would such {t} have? | Tell us the {p} that applies to any {t} once [*bare]. | Do we know the {p} behind {t} that carry [*phrase]? | Just the {p} will do, taken from {t} where [*bare]. | What {p} turns up when we filter {t} by whether [*bare]?
hagg:avg = average figure for {a} | mean level of {a} | plain average of {a}
hagg:sum = grand total for {a} | whole sum of {a} | combined total for {a}
hagg:max = highest figure for {a} | largest level of {a} | top {a} value
hagg:min = lowest figure for {a} | smallest level of {a} | bottom {a} value
hw:none = |
hw:some = that carry [*phrase] | for which [*bare] | holding [*phrase]
aggregate = Taking {t} [hw] as a whole, work out their [hagg]. | I am curious about the [hagg] found among {t} [hw]. | Once you look at {t} [hw], what comes up as [hagg]? | Say what [hagg] we get from {t} [hw]. | Could someone check {t} [hw] for their [hagg]? | Our {t} [hw] must have some [hagg]: what is it? | Which number is the [hagg] once {t} [hw] are all looked at?
hcount = Say how many {t} we own in all. | Put a number on our {t}, please. | What does the number of {t} come to? | How big is our whole set of {t}? | I am curious how many {t} turn up. | Go through the {t} and say how many you counted. | A plain count is enough: how many {t}?
count = [hcount]
count:some = Of our {t}, how many carry [*phrase]? | Say how many {t} stay once [*bare]. | What does the number of {t} showing [*phrase] come to? | Put a number on {t} that carry [*phrase]. | For how many {t} does it hold that [*bare]? | Go through the {t} and count whenever [*bare]. | I am curious how many {t} turn up with [*phrase].
most:desc = highest | largest | greatest
most:asc = lowest | smallest | least
high:desc = high | large
high:asc = low | small
order.one.all = Of our {t}, which one holds the [most] {a}? | Point me at the {t} record with [most] {a}. | When it comes to {a}, which {t} record has the [most]? | No other {t} record has so [high] a {a}: which one is it? | Just one of the {t}, please: whichever shows [most] {a}. | Go through the {t} until you reach the [most] {a} and show that record.
order.one.col = Say which {p} goes along with the very [most] {a} in {t}. | When it comes to {a}, what {p} has the [most] out of all {t}? | Point me at the {p} for which {t} show their [most] {a}. | No other {t} record has so [high] a {a}: what is its {p}? | Of our {t}, the one holding the [most] {a} has what {p}? | Just one {p} from {t}, please: that with [most] {a}.
hdir:desc = with the largest in front | going from high down to low | beginning at the highest
hdir:asc = with the smallest in front | going from low up to high | beginning at the lowest
order.many.all = Line up the {t} by {a}, [hdir], and hand over {n}. | Which {n} of our {t} rank [most] for {a}? | Limit the {t} to {n}, choosing by [most] {a}. | I only care about {n} of the {t}, namely those of [most] {a}. | When it comes to {a}, name the {n} [most] among {t}. | Cut the list of {t} off after {n}, [hdir] in {a}. | Just {n} from the {t}, please, {a} [hdir].
order.many.col = Line up the {t} by {a}, [hdir], and read off {n} times the {p}. | What {p} do we find on the {n} {t} that rank [most] for {a}? | Limit the {t} to {n}, choosing by [most] {a}, and note their {p}. | I only care about the {p} from {n} of the {t}, namely those of [most] {a}. | When it comes to {a}, name the {p} behind the {n} [most] among {t}. | Just the {p} will do, for {n} of the {t}, {a} [hdir].
group.agg = Take {t} one {g} at a time and give their [hagg]. | With {g} to form groups of {t}, work out what [hagg] each has. | I am curious how the [hagg] differs from {g} to {g} among {t}. | What [hagg] do {t} reach under each distinct {g}? | Break the {t} up along {g} and put down every [hagg]. | Set each {g} against the [hagg] its {t} have. | Say the [hagg] once per {g}, going through {t}.
group.count = Take {t} one {g} at a time and give their number. | With {g} to form groups of {t}, work out how big each is. | I am curious how the number of {t} differs from {g} to {g}. | How many {t} fall under each distinct {g}? | Break the {t} up along {g} and count every part. | Set each {g} against how many {t} it has. | Say once per {g} how many {t} turn up.
join = Follow {t} back to their {u} and, where [*bare], note down the {p}. | Which {p} do we find on {t} whose own {u} carry [*phrase]? | By way of {u} that carry [*phrase], reach the {t} and note their {p}. | I only care about the {p}, and just for {t} whose {u} are ones showing [*phrase]. | Take whichever {u} have [*phrase]: what {p} do the {t} under them show? | With both {t} and {u} at hand, tell us every {p} whenever [*bare]. | Supposing [*bare] for the {u}, what {p} would their {t} have?
"""

TRAINING = Grammar(
    _CONDITIONS + _TRAIN_COMMON + _TRAIN_FILTER + _TRAIN_AGGREGATE + _TRAIN_ORDER + _TRAIN_GROUP + _TRAIN_JOIN
)
HELD_OUT = Grammar(_HELD_OUT)

_MASK = {"t": "<t>", "u": "<t>", "p": "<c>", "c": "<c>", "a": "<c>", "g": "<c>", "n": "<n>"}
_TOKEN = re.compile(r"<[tcvn]>|[a-z0-9]+(?:'[a-z]+)?|[<>=]+")
_SLOT = re.compile(r"\{([a-z])(\d?)\}")


def draw(split: Split, shape: Shape, rng: Random) -> str:
    """One phrasing for `shape`, its names still slots; a training phrasing holds no held-out sequence."""
    if split == "test":
        return HELD_OUT.draw(shape, rng)
    while True:
        phrasing = TRAINING.draw(shape, rng)
        if not contains_held_out(mask_slots(phrasing, shape)):
            return phrasing


def mask_slots(phrasing: str, shape: Shape) -> str:
    """A phrasing with its slots as `<t>`, `<c>`, `<v>` and `<n>`."""

    def mask(match: re.Match[str]) -> str:
        slot, place = match.groups()
        if slot == "v":
            return "<v>" if shape.conditions[int(place)] == "text" else "<n>"
        return _MASK[slot]

    return _SLOT.sub(mask, phrasing)


def mask_names(text: str, tables: Collection[str], columns: Collection[str], values: Collection[str]) -> str:
    """Text with every table, column, value and number masked: what sequences are compared on."""
    marks = {**dict.fromkeys(values, "<v>"), **dict.fromkeys(columns, "<c>"), **dict.fromkeys(tables, "<t>")}
    marks |= dict.fromkeys(NUMBER_WORDS[2:], "<n>")
    names = sorted(marks, key=len, reverse=True)
    pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, names)) + r")\b|\b\d+\b")
    return pattern.sub(lambda match: marks.get(match[0], "<n>"), text.lower())


def sequences(masked: str) -> set[tuple[str, ...]]:
    """Every sequence of four words of a masked text, without case and punctuation."""
    words = _TOKEN.findall(masked.lower())
    return set(zip(*(words[k:] for k in range(WORDS_IN_A_SEQUENCE)), strict=False))


@cache
def held_out_sequences() -> frozenset[tuple[str, ...]]:
    """Every sequence of four words of every held-out phrasing; what joins two conditions depends on nothing around it."""
    return frozenset(sequence for phrasing in held_out_phrasings() for sequence in sequences(phrasing))


@cache
def held_out_phrasings() -> frozenset[str]:
    """Every held-out phrasing with one condition or none, masked; and every pair of conditions."""
    pairs = (Shape("pair", (), (one, two)) for one in OPERATORS for two in OPERATORS)
    every = (*shapes(), *pairs)
    return frozenset(mask_slots(phrasing, shape) for shape in every for phrasing in HELD_OUT.all(shape))


def shapes() -> Iterator[Shape]:
    """Every shape a question with at most one condition can have."""
    for some in [(one,) for one in OPERATORS]:
        yield from (Shape(start, (), some) for start in ("filter.all", "filter.col"))
        yield Shape("count", ("some",), some)
        yield from (Shape("aggregate", ("some", function), some) for function in AGGREGATES)
    yield Shape("count", ("none",))
    yield from (Shape("aggregate", ("none", function)) for function in AGGREGATES)
    yield from (Shape("join", (), (one,)) for one in OPERATORS)
    yield Shape("group.count")
    yield from (Shape("group.agg", (function,)) for function in AGGREGATES)
    for direction in DIRECTIONS:
        yield from (Shape(f"order.{many}.{what}", (direction,)) for many in ("one", "many") for what in ("all", "col"))


def contains_held_out(masked: str) -> bool:
    """Whether a masked text holds a sequence of a held-out phrasing."""
    return not held_out_sequences().isdisjoint(sequences(masked))


def without_held_out(lines: Iterable[str], mask: Iterable[str]) -> Iterator[str]:
    """The lines whose masked form holds no held-out sequence."""
    return (line for line, masked in zip(lines, mask, strict=True) if not contains_held_out(masked))
